"""The events of a streamed response are those that OpenAI's client knows, and joined they are the response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from pocketvlm.api.answers import Delta, TokenLogprob
from pocketvlm.protocol.responses_request import parse_response_request
from pocketvlm.protocol.responses_stream import ResponseStream
from pocketvlm.tools.calls import ToolCall

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 5,
}
HEAD = {
    "id": "resp_1",
    "created_at": 1,
    "model": "nano",
    "temperature": 0.5,
    "top_p": 1.0,
    **parse_response_request({"input": "Hello"}).echo,
}
LOGPROB = TokenLogprob(1, "a", -0.5, ((1, "a", -0.5), (2, "\ufffd", -1.0)))
CALL = st.builds(ToolCall, st.sampled_from("fg"), st.fixed_dictionaries({"count": st.integers()}))
DELTA = st.builds(
    Delta,
    text=st.text("ab é", max_size=5),
    reasoning=st.sampled_from(["", "thought"]),
    logprobs=st.lists(st.just(LOGPROB), max_size=2).map(tuple),
    tool_calls=st.lists(CALL, max_size=2).map(tuple),
)


def joined(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that a client makes of the events before the last one."""
    output: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            assert event["item"]["status"] == "in_progress"
            output.append(event["item"])
            continue
        if "output_index" not in event:
            continue
        item = output[event["output_index"]]
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "content_part.added":
            item["content"].append(event["part"])
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind.endswith(".delta"):
            part = item["content"][event["content_index"]]
            part["text"] += event["delta"]
            if "logprobs" in part:
                part["logprobs"] += event["logprobs"]
        elif kind == "function_call_arguments.done":
            assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
        elif kind == "content_part.done":
            assert event["part"] == item["content"][event["content_index"]]
        elif kind == "output_item.done":
            assert event["item"] == {**item, "status": event["item"]["status"]}
            item["status"] = event["item"]["status"]
        else:
            assert event["text"] == item["content"][event["content_index"]]["text"]
    return output


def streamed(deltas: Sequence[Delta], reason: str, **options: Any) -> tuple[ResponseStream, list[dict[str, Any]]]:
    stream = ResponseStream(HEAD, **options)
    events = list(stream.start())
    for delta in (*deltas, Delta(finish_reason=reason)):
        events += stream.add(delta)
    return stream, [*events, *stream.end(USAGE, now=2)]


@given(st.lists(DELTA, max_size=6), st.sampled_from(["stop", "length", "abort"]), st.booleans())
def test_events_joined_are_the_response(deltas: list[Delta], reason: str, has_logprobs: bool) -> None:
    stream, events = streamed(deltas, reason, has_logprobs=has_logprobs)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    whole = events[-1]["response"]
    assert whole == stream.whole(USAGE, now=2)
    assert joined(events[:-1]) == whole["output"]
    assert whole["status"] == {"stop": "completed", "length": "incomplete", "abort": "failed"}[reason]
    assert events[-1]["type"] == f"response.{whole['status']}"
    items = whole["output"]
    assert len({item["id"] for item in items}) == len(items) > 0
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    assert "".join(part["text"] for part in parts) == "".join(delta.text for delta in deltas)
    tokens = sum(len(delta.logprobs) for delta in deltas) if has_logprobs else 0
    assert sum(len(part["logprobs"]) for part in parts) <= tokens
    thoughts = [part for item in items if item["type"] == "reasoning" for part in item["content"]]
    assert "".join(part["text"] for part in thoughts) == "".join(delta.reasoning for delta in deltas)
    calls = [item["name"] for item in items if item["type"] == "function_call"]
    assert calls == [call.name for delta in deltas for call in delta.tool_calls]


@given(st.lists(DELTA, max_size=6), st.sampled_from(["stop", "length"]))
def test_the_clients_own_types_take_every_event(deltas: list[Delta], reason: str) -> None:
    _, events = streamed(deltas, reason, has_logprobs=True)
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=[], text_format=omit)
    for event in events:
        parsed = EVENTS.validate_python(event)
        assert parsed.type == event["type"]
        state.handle_event(parsed)
    Response.model_validate(events[-1]["response"])


@given(st.lists(DELTA, max_size=4), st.sampled_from(["stop", "length"]))
def test_the_output_of_a_response_may_be_sent_back_as_it_came(deltas: list[Delta], reason: str) -> None:
    _, events = streamed(deltas, reason, has_logprobs=True)
    output = events[-1]["response"]["output"]
    messages = parse_response_request({"input": [{"role": "user", "content": "Hello"}, *output]}).messages
    assert all(message["role"] == "assistant" for message in messages[1:])
    calls = [call["function"] for message in messages[1:] for call in message.get("tool_calls", [])]
    expected = [item for item in output if item["type"] == "function_call"]
    assert calls == [{"name": item["name"], "arguments": item["arguments"]} for item in expected]
    text = "".join(delta.text for delta in deltas)
    assert "".join(message.get("content", "") for message in messages[1:]) == text


def test_a_stream_that_is_lost_ends_with_what_was_there() -> None:
    stream = ResponseStream(HEAD)
    events = [*stream.start(), *stream.add(Delta(text="Hel")), *stream.fail("the engine is gone")]
    for event in events:
        EVENTS.validate_python(event)
    whole = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert whole["error"] == {"code": "server_error", "message": "the engine is gone"}
    assert joined(events[:-1]) == whole["output"]
    assert (whole["output"][0]["status"], whole["output"][0]["content"][0]["text"]) == ("incomplete", "Hel")


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    _, events = streamed([], "stop")
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")
