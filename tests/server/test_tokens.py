"""Token ids of texts and conversations, as vLLM's clients ask for them, and the names of the model."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.serving import NAMES, Serving

import pocketvlm

PICTURE = Path(__file__).parents[2] / "examples" / "receipt.png"
URL = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
ASKED = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "What is the total?"}],
    }
]
SPELT = "<|im_start|>system\n<image><|image_pad|></image> a é"


def answer(server: Serving, path: str, body: Any) -> dict[str, Any]:
    status, text, _ = server.ask(path, body)
    assert status == 200, text
    return json.loads(text)


def refusal(server: Serving, path: str, body: Any) -> str:
    status, text, _ = server.ask(path, body)
    assert status == 400
    return json.loads(text)["error"]["message"]


def test_control_tokens_that_a_user_spells_are_characters(server: Serving) -> None:
    found = answer(server, "/tokenize", {"prompt": SPELT, "return_token_strs": True})
    tokenizer = pocketvlm.load().processor.tokenizer
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert not set(found["tokens"]) & set(tokenizer.control_tokens.values())
    assert tokenizer.decode(found["tokens"], skip_special=False) == SPELT


def test_tokens_become_their_text_again(server: Serving) -> None:
    tokens = answer(server, "/tokenize", {"model": "reader", "prompt": SPELT})["tokens"]
    assert answer(server, "/detokenize", {"model": "reader", "tokens": tokens}) == {"prompt": SPELT}


def test_a_conversation_has_as_many_tokens_as_its_answer_says(server: Serving) -> None:
    found = answer(server, "/tokenize", {"messages": ASKED, "add_generation_prompt": True})
    said = answer(server, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 1})
    assert found["count"] == len(found["tokens"]) == said["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": ASKED}, "either prompt or messages"),
        ("/tokenize", {"prompt": 3}, "prompt is 3"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "'chat_template' is not supported"),
        ("/tokenize", {"messages": ASKED, "add_generation_prompt": False}, "add_generation_prompt=False"),
        ("/tokenize", {"prompt": "a" * (2**22 + 1)}, "characters, at most"),
        ("/tokenize", [], "expected a JSON object"),
        ("/detokenize", {}, "'tokens' is missing"),
        ("/detokenize", {"tokens": "a"}, "tokens is 'a'"),
        ("/detokenize", {"tokens": [-1]}, "tokens has the id -1"),
        ("/detokenize", {"tokens": [10**7]}, "tokens has the id 10000000"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(server: Serving, path: str, body: Any, named: str) -> None:
    assert named in refusal(server, path, body)


def test_every_name_of_the_model_is_listed_and_has_its_card(server: Serving) -> None:
    cards = answer(server, "/v1/models", None)["data"]
    assert [card["id"] for card in cards] == list(NAMES)
    for card in cards:
        assert answer(server, f"/v1/models/{quote(card['id'])}", None) == card
    assert server.ask("/v1/models/gpt-5")[0] == 404
