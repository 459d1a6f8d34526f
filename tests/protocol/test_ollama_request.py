"""Ollama's bodies become requests of the same meaning; what is not honoured is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.errors import PocketVLMError
from pocketvlm.protocol.chat_request import ChatRequest
from pocketvlm.protocol.ollama_request import FIELDS, parse_ollama

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
USER = {"role": "user", "content": "Hello"}


def chat(**fields: Any) -> ChatRequest:
    found = parse_ollama("chat", {"model": "nano", "messages": [USER], **fields}).chat
    assert found is not None
    return found


def said(ask: Callable[[], object]) -> str:
    """What a refusal says; nothing where there is none. Any other error is ours."""
    try:
        ask()
    except PocketVLMError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["chat", "generate"])
@given(body=st.fixed_dictionaries({}, optional=dict.fromkeys({*FIELDS["chat"], *FIELDS["generate"]}, ANY)) | ANY)
def test_whatever_the_body_it_is_read_or_refused_in_one_line(kind: str, body: Any) -> None:
    assert "\n" not in said(lambda: parse_ollama(kind, body))


@given(st.dictionaries(st.text(max_size=8), ANY, max_size=3))
def test_whatever_the_message_it_is_read_or_refused_in_one_line(more: dict[str, Any]) -> None:
    for extra in ({}, {"tool_calls": [more]}, {"tool_calls": [{"function": more}]}, {"images": [*more]}):
        message: dict[str, Any] = {**USER, **more, **extra}
        assert "\n" not in said(lambda message=message: chat(messages=[message]))


def test_options_have_the_meaning_that_ollama_gives_them() -> None:
    options = {"temperature": 0.5, "repeat_penalty": 1.2, "stop": ["a"], "seed": 3, "num_predict": 7, "top_k": 5}
    asked = chat(options=options)
    expected = {"temperature": 0.5, "repetition_penalty": 1.2, "stop": ["a"], "seed": 3, "max_tokens": 7, "top_k": 5}
    assert asked.options == expected
    assert chat(options={"seed": -1, "num_predict": -1, "num_gpu": 99, "num_ctx": 512}).options == {}
    assert parse_ollama("chat", {"model": "a", "messages": [USER], "options": {"num_ctx": 512}}).num_ctx == 512
    assert chat(options={"downsample_mode": "4x"}).options == {"downsample_mode": "4x"}
    assert chat(options={"repeat_last_n": 64, "repeat_penalty": 1.0}).options == {"repetition_penalty": 1.0}


@pytest.mark.parametrize(
    "option",
    [
        {"mirostat": 1},
        {"typical_p": 0.7},
        {"tfs_z": 0.9},
        {"penalize_newline": False},
        {"repeat_last_n": 64, "repeat_penalty": 1.1},
        {"num_ctx": 0},
        {"num_predict": -3},
        {"num_gpu": "all"},
        {"mirostat": False},
        {"colour": 1},
    ],
)
def test_an_option_that_is_not_honoured_is_named(option: dict[str, Any]) -> None:
    with pytest.raises(PocketVLMError, match=next(iter(option))):
        chat(options=option)


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0h0m"])
def test_a_time_to_live_of_nothing_unloads(keep_alive: Any) -> None:
    assert parse_ollama("generate", {"model": "a", "keep_alive": keep_alive}).unloads


@pytest.mark.parametrize("keep_alive", [-1, 300, "5m", "-1", "1h30m", "0.5s"])
def test_any_other_does_not(keep_alive: Any) -> None:
    assert not parse_ollama("generate", {"model": "a", "keep_alive": keep_alive}).unloads


def test_answers_of_tools_find_their_calls_by_name() -> None:
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g", "f")]
    answers = [{"role": "tool", "content": "x", "tool_name": name} for name in ("f", "f", "g")]
    asked = chat(messages=[USER, {"role": "assistant", "content": "", "tool_calls": calls}, *answers])
    ids = [call["id"] for call in asked.messages[1]["tool_calls"]]
    assert [message["tool_call_id"] for message in asked.messages[2:]] == [ids[0], ids[2], ids[1]]


def test_images_come_before_the_text_of_their_message() -> None:
    asked = chat(messages=[{**USER, "images": ["iVBORw0", "data:image/png;base64,iVBORw0"]}])
    urls = [part["image_url"]["url"] for part in asked.messages[0]["content"][:2]]
    assert urls == ["data:;base64,iVBORw0", "data:image/png;base64,iVBORw0"]
    assert asked.messages[0]["content"][2] == {"type": "text", "text": "Hello"}


def test_an_image_alone_is_a_question() -> None:
    assert parse_ollama("generate", {"model": "a", "images": ["iVBORw0"]}).chat is not None
    assert parse_ollama("generate", {"model": "a", "prompt": "", "images": []}).chat is None


def test_tools_and_a_format_exclude_each_other() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(tools=tools).options["tools"] == tools
    with pytest.raises(PocketVLMError, match="tools and format"):
        chat(tools=tools, format="json")
