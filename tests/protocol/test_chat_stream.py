"""The chunks of a stream, joined as clients join them, are the message of the whole completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.api.answers import Answer, Delta, TokenLogprob, Usage
from pocketvlm.protocol.chat_response import chat_completion
from pocketvlm.protocol.chat_stream import ChatStream
from pocketvlm.tools.calls import ToolCall

CALLS = st.lists(
    st.builds(ToolCall, st.sampled_from("fg"), st.fixed_dictionaries({"count": st.integers()})), max_size=3
)


def joined(chunks: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The choices that a client makes of a stream."""
    choices: list[dict[str, Any]] = [{"message": {}, "logprobs": [], "finish_reason": None} for _ in range(count)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices[choice["index"]]
            assert whole["finish_reason"] is None, "nothing comes behind the reason"
            whole["finish_reason"] = choice["finish_reason"]
            whole["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    for piece in value:
                        add_call(whole["message"].setdefault(name, []), piece)
                else:
                    whole["message"][name] = whole["message"].get(name, "") + value
    return choices


def add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    if piece["index"] == len(calls):
        calls.append({**piece, "function": dict(piece["function"])})
    else:
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]


@given(
    st.lists(st.tuples(st.text("ab ", max_size=20), st.sampled_from(["", "thought"]), CALLS), min_size=1, max_size=3),
    st.integers(1, 9),
    st.booleans(),
)
def test_chunks_joined_are_the_message(
    said: list[tuple[str, str, list[ToolCall]]], size: int, with_logprobs: bool
) -> None:
    head: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": "nano"}
    logprob = TokenLogprob(1, "a", -0.5, ((1, "a", -0.5),))
    stream, chunks, answers = ChatStream(**head, count=len(said), include_usage=True), list[dict[str, Any]](), []
    chunks += stream.start()
    for index, (text, reasoning, calls) in enumerate(said):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        logprobs = (logprob,) if with_logprobs else ()
        for piece in pieces:
            chunks += stream.add(Delta(index, piece, "", logprobs))
        if reasoning:
            chunks += stream.add(Delta(index, "", reasoning))
        for call in calls:
            chunks += stream.add(Delta(index, tool_calls=(call,)))
        chunks += stream.add(Delta(index, finish_reason="stop"))
        taken = logprobs * len(pieces) if with_logprobs else None
        answers.append(
            Answer(text, Usage(3, 1, 2), {}, "stop", reasoning or None, logprobs=taken, tool_calls=(*calls,))
        )
    chunks += stream.end(answers)
    whole = chat_completion(answers, **head)
    assert {(chunk["id"], chunk["model"], chunk["object"]) for chunk in chunks} == {
        ("chatcmpl-1", "nano", "chat.completion.chunk")
    }
    assert chunks[-1] == {**chunks[0], "choices": [], "usage": whole["usage"]}
    for choice, expected in zip(joined(chunks[:-1], len(said)), whole["choices"], strict=True):
        message = expected["message"]
        assert choice["finish_reason"] == expected["finish_reason"]
        assert choice["logprobs"] == (expected["logprobs"] or {"content": []})["content"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == (message["content"] or "")
        assert choice["message"].get("reasoning_content") == message.get("reasoning_content")
        found = [{k: v for k, v in call.items() if k != "index"} for call in choice["message"].get("tool_calls", [])]
        assert found == message.get("tool_calls", [])
        assert [call["index"] for call in choice["message"].get("tool_calls", [])] == list(range(len(found)))


def test_log_probabilities_of_a_delta_with_several_parts_come_once() -> None:
    logprob = TokenLogprob(1, "a", -0.5, ())
    delta = Delta(0, "text", "thought", (logprob,), "stop", (ToolCall("f", {}),))
    stream = ChatStream(id="chatcmpl-1", created=1, model="nano")
    (choice,) = joined([*stream.start(), *stream.add(delta)], 1)
    assert len(choice["logprobs"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("text", "thought")
