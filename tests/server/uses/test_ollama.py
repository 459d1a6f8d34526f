"""The `ollama` package, as people have it, against `pocketvlm serve`."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import ollama
import pytest
from helpers.serving import NAMES, Serving
from pydantic import BaseModel, ConfigDict

import pocketvlm

PICTURE = Path(__file__).parents[3] / "examples" / "receipt.png"
QUESTION = "What is the total?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION, "images": [PICTURE]}]
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
KEY = {"Authorization": "Bearer secret"}
LONG: dict[str, Any] = {"temperature": 0.0, "num_predict": 15000, "repeat_penalty": 1.0}


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[ollama.Client]:
    with ollama.Client(server.url, headers=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> pocketvlm.Answer:
    return pocketvlm.load().ask(PICTURE, QUESTION)


def test_a_chat_with_an_image_is_the_answer_of_the_model_itself(
    client: ollama.Client, expected: pocketvlm.Answer
) -> None:
    found = client.chat("reader", ASKED)
    assert found.message.content == expected.text
    assert (found.model, found.done, found.done_reason) == ("reader", True, expected.finish_reason)
    assert (found.prompt_eval_count, found.eval_count) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    assert found.total_duration is not None
    assert found.prompt_eval_duration is not None
    assert found.eval_duration is not None
    assert found.total_duration >= found.prompt_eval_duration + found.eval_duration > 1


def test_generate_is_a_chat_of_one_turn(client: ollama.Client, expected: pocketvlm.Answer) -> None:
    for image in (PICTURE, PICTURE.read_bytes(), base64.b64encode(PICTURE.read_bytes()).decode()):
        assert client.generate("reader", QUESTION, images=[image]).response == expected.text
    spoken = client.generate("reader", "Hello", system="Be brief.")
    said = client.chat("reader", [{"role": "system", "content": "Be brief."}, *HELLO])
    assert spoken.response == said.message.content


def test_a_stream_joined_is_the_answer(client: ollama.Client, expected: pocketvlm.Answer) -> None:
    chat = list(client.chat("reader", ASKED, stream=True))
    assert "".join(part.message.content or "" for part in chat) == expected.text
    assert [part.done for part in chat] == [False] * (len(chat) - 1) + [True]
    assert chat[-1].eval_count == expected.usage.completion_tokens
    generated = list(client.generate("reader", QUESTION, images=[PICTURE], stream=True))
    assert len(generated) > 2
    assert "".join(part.response or "" for part in generated) == expected.text
    assert generated[-1].done_reason == expected.finish_reason


def test_a_stream_is_what_comes_where_nothing_was_said(server: Serving) -> None:
    status, text, headers = server.ask("/api/chat", {"model": "reader", "messages": HELLO})
    lines = [json.loads(line) for line in text.splitlines()]
    assert status == 200
    assert headers["content-type"] == "application/x-ndjson"
    assert len(lines) > 1
    assert lines[-1]["done"] is True


def test_two_images_come_in_their_order(client: ollama.Client) -> None:
    word = PICTURE.with_name("word.png")
    question = "What does the second picture say?"
    found = client.generate("reader", question, images=[PICTURE, word], options={"num_predict": 20})
    assert found.response == pocketvlm.load().ask([PICTURE, word], question, max_tokens=20).text


class Receipt(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["receipt", "letter"]
    paid: bool


def test_a_format_is_kept_to(client: ollama.Client) -> None:
    schema = Receipt.model_json_schema()
    found = client.chat("reader", ASKED, format=schema, options={"num_predict": 200}).message.content
    assert found is not None
    Receipt.model_validate_json(found)
    generated = client.generate("reader", QUESTION, images=[PICTURE], format=schema, options={"num_predict": 200})
    assert generated.response == found
    as_json = client.chat("reader", HELLO, format="json", options={"num_predict": 300, "stop": ["}"]}).message.content
    assert as_json is not None
    assert as_json.startswith("{")


def weather(city: str, days: int = 1) -> str:
    """The weather of a city.

    Args:
        city: its name
        days: how many
    """
    return f"{city} {days}"


def test_tools_are_called_and_answered(client: ollama.Client) -> None:
    tools: list[Any] = [weather, {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
    assert client.chat("reader", HELLO, tools=tools, options={"num_predict": 20}).message.role == "assistant"
    calls = [
        {"function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}}},
        {"function": {"name": "clock", "arguments": {}}},
    ]
    messages: list[Any] = [
        *HELLO,
        ollama.Message(role="assistant", content="", tool_calls=calls),
        {"role": "tool", "content": "noon", "tool_name": "clock"},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
    ]
    in_order = [*messages[:2], messages[3], messages[2]]
    ask: dict[str, Any] = {"tools": tools, "options": {"num_predict": 20, "temperature": 0}}
    found = [client.chat("reader", turns, **ask).message.content for turns in (messages, in_order)]
    assert found[0] == found[1]  # answers are matched to their calls by name


def test_thinking_stands_apart(client: ollama.Client) -> None:
    question = [{"role": "user", "content": QUESTION}]
    expected = pocketvlm.load().chat(question, enable_thinking=True, max_tokens=30)
    found = client.chat("reader", question, think=True, options={"num_predict": 30})
    assert (found.message.thinking or "", found.message.content) == (expected.reasoning or "", expected.text)
    parts = list(client.chat("reader", question, think=True, stream=True, options={"num_predict": 30}))
    assert "".join(part.message.thinking or "" for part in parts) == (expected.reasoning or "")
    assert client.chat("reader", question, think=False, options={"num_predict": 30}).message.thinking is None


def test_logprobs_come_with_their_tokens(client: ollama.Client) -> None:
    found = client.generate("reader", "Hello", logprobs=True, top_logprobs=2, options={"num_predict": 4})
    assert found.logprobs is not None
    assert len(found.logprobs) == found.eval_count
    assert all(token.top_logprobs is not None and len(token.top_logprobs) == 2 for token in found.logprobs)


def test_options_are_honoured(client: ollama.Client) -> None:
    for options, same in (({"seed": 7, "temperature": 5.0}, True), ({"seed": -1, "temperature": 100.0}, False)):
        wanted = {**options, "num_predict": 30}
        found = {client.generate("reader", "Hello", options=wanted).response for _ in range(3)}
        assert (len(found) == 1) == same
    short = client.generate("reader", QUESTION, images=[PICTURE], options={"num_predict": 2})
    assert (short.eval_count, short.done_reason) == (2, "length")
    few = client.generate("reader", QUESTION, images=[PICTURE], options={"max_slice_nums": 1, "num_predict": 1})
    assert (few.prompt_eval_count or 0) < (short.prompt_eval_count or 0)
    whole = client.generate("reader", "Hello", options={"num_gpu": 1, "num_thread": 2}, keep_alive="5m")
    limit = (whole.prompt_eval_count or 0) + 2
    assert client.generate("reader", "Hello", options={"num_ctx": limit}).eval_count == 2
    with pytest.raises(ollama.ResponseError, match="num_ctx=3"):
        client.generate("reader", "Hello", options={"num_ctx": 3})


def test_models_are_listed_shown_and_running(client: ollama.Client) -> None:
    listed = client.list().models
    names = [name if ":" in name else f"{name}:latest" for name in NAMES]
    assert [one.model for one in listed] == names
    assert all(one.size and one.digest and len(one.digest) == 64 for one in listed)
    assert [one.model for one in client.ps().models] == names
    for one in listed:
        assert one.model is not None
        assert client.generate(one.model, "Hello", options={"num_predict": 1}).model == one.model
        shown = client.show(one.model)
        assert shown.capabilities is not None
        assert {"vision", "tools"} <= set(shown.capabilities)
        assert shown.modelinfo is not None
        assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] == 16384


def test_no_prompt_loads_or_unloads(client: ollama.Client) -> None:
    for keep_alive, reason in ((None, "load"), ("10m", "load"), (0, "unload"), ("0s", "unload")):
        assert client.generate("reader", keep_alive=keep_alive).done_reason == reason
        assert client.chat("reader", [], keep_alive=keep_alive).done_reason == reason
    assert [part.done_reason for part in client.generate("reader", stream=True)] == ["load"]


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"model": "llama3"}, 404, "no model 'llama3'"),
        ({"model": ""}, 400, "'model' is missing"),
        ({"options": {"colour": "red"}}, 400, "'colour'"),
        ({"options": {"mirostat": 2}}, 400, "options.mirostat=2"),
        ({"options": {"repeat_penalty": 1000}}, 400, "repeat_penalty=1000"),
        ({"options": {"num_predict": 10**9}}, 400, "num_predict=1000000000"),
        ({"options": {"temperature": "hot"}}, 400, "options.temperature"),
        ({"suffix": "end"}, 400, "suffix='end'"),
        ({"template": "{{ .Prompt }}"}, 400, "template="),
        ({"context": [1, 2]}, 400, "context="),
        ({"raw": True}, 400, "raw=True"),
        ({"width": 10}, 400, "'width'"),
        ({"think": "high"}, 400, "think is 'high'"),
        ({"format": "yaml"}, 400, "format is 'yaml'"),
        ({"format": {"type": "colour"}}, 400, "colour"),
        ({"keep_alive": "soon"}, 400, "keep_alive"),
        ({"images": ["/etc/passwd"]}, 400, "images[0] is '/etc/passwd', expected a picture in base64"),
        ({"images": ["https://example.com/a.png"]}, 400, "images[0] is 'https://example.com/a.png'"),
        ({"images": ["aGVsbG8gd29ybGQ="]}, 400, "images[0] is not a JPEG"),
        ({"images": ["photo.png"]}, 400, "images[0] is not valid base64"),
        ({"images": [base64.b64encode(PICTURE.read_bytes()[:900]).decode()]}, 400, "images[0] is damaged"),
        ({"prompt": 3}, 400, "prompt is 3"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_ollamas_form(
    server: Serving, request_: dict[str, Any], status: int, says: str
) -> None:
    body = {"model": "reader", "prompt": "Hello", "stream": True, **request_}
    found, text, _ = server.ask("/api/generate", body)
    assert (found, list(json.loads(text))) == (status, ["error"])
    assert says in json.loads(text)["error"]
    assert "\n" not in json.loads(text)["error"]
    assert "data:" not in json.loads(text)["error"]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": "a", "images": ["aGVsbG8gd29ybGQ="]}], "messages[0].images[0] is not a JPEG"),
        ([{"role": "wizard", "content": "a"}], "messages[0]: role is 'wizard'"),
        ([{"role": "user", "content": "a", "mood": "good"}], "messages[0] has the field 'mood'"),
        ([{"role": "user", "content": "a", "tool_name": "f"}], "tool_name"),
        (["Hello"], "messages[0]"),
    ],
)
def test_a_message_at_fault_is_named(server: Serving, messages: list[Any], says: str) -> None:
    status, text, _ = server.ask("/api/chat", {"model": "reader", "messages": messages})
    assert status == 400
    assert says in json.loads(text)["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/embed", {"model": "reader", "input": "a"}, 501),
        ("/api/pull", {"model": "llama3"}, 501),
        ("/api/nothing", {}, 404),
        ("/api/chat", b"{", 400),
        ("/api/tags", {}, 405),
    ],
)
def test_every_error_has_ollamas_form(server: Serving, path: str, body: Any, status: int) -> None:
    found, text, _ = server.ask(path, body)
    assert found == status
    assert isinstance(json.loads(text)["error"], str)


def test_without_a_key_nothing_is_answered(server: Serving) -> None:
    for ask in (lambda one: one.list(), lambda one: one.chat("reader", HELLO)):
        with ollama.Client(server.url) as stranger, pytest.raises(ollama.ResponseError, match="wants a key") as error:
            ask(stranger)
        assert error.value.status_code == 401


def test_the_server_says_that_it_is_there(server: Serving) -> None:
    assert server.ask("/", method="HEAD")[0] == 200
    assert json.loads(server.ask("/api/version")[1])["version"].count(".") == 2


def running(server: Serving) -> float:
    found = server.ask("/metrics")[1]
    lines = [line for line in found.splitlines() if line.startswith("pocketvlm:num_requests_running")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_an_answer_that_nobody_waits_for_is_given_up(server: Serving) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 4000}  # an answer that does not end by itself

    async def leave() -> None:
        async with ollama.AsyncClient(server.url, headers=KEY) as client:
            asking = asyncio.create_task(client.generate("reader", "Count", format=schema, options=LONG))
            while not await asyncio.to_thread(running, server):
                assert not asking.done()
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            parts = await client.chat("reader", HELLO, stream=True, format=schema, options=LONG)
            async for _ in parts:
                break

    asyncio.run(leave())
    ends = time.monotonic() + 60  # on a machine with much else to do
    while running(server):
        assert time.monotonic() < ends, "the engine still works on it"
        time.sleep(0.01)
