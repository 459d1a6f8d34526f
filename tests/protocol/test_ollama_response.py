"""The objects of an Ollama stream, joined as clients join them, are the object of the whole answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.api.answers import Answer, Delta, TokenLogprob, Usage
from pocketvlm.protocol.ollama_response import OllamaAnswer, ollama_error, timestamp
from pocketvlm.tools.calls import ToolCall

TOKEN = TokenLogprob(1, "a", -0.5, ((1, "a", -0.5),))
DELTAS = st.lists(
    st.builds(
        Delta,
        text=st.text("ab {\n\u20ac", max_size=4),
        reasoning=st.sampled_from(["", "hm"]),
        logprobs=st.lists(st.just(TOKEN), max_size=2).map(tuple),
        tool_calls=st.lists(st.builds(ToolCall, st.sampled_from("fg"), st.just({"x": [1]})), max_size=2).map(tuple),
    ),
    max_size=8,
)


def joined(pieces: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What a client makes of a stream: texts are joined, lists too, and the last object has the figures."""
    whole: dict[str, Any] = {}
    for piece in pieces:
        said = piece["message"] if kind == "chat" else piece
        for name in ("content", "response", "thinking", "tool_calls"):
            if name in said:
                whole[name] = whole[name] + said[name] if name in whole else said[name]
        whole["logprobs"] = [*whole.get("logprobs", ()), *piece.get("logprobs", ())]
    return whole


@pytest.mark.parametrize("kind", ["chat", "generate"])
@given(DELTAS, st.sampled_from(["stop", "length"]))
def test_a_stream_joined_is_the_whole(kind: str, deltas: list[Delta], reason: str) -> None:
    answer = Answer(
        "".join(delta.text for delta in deltas),
        Usage(5, 2, 3),
        {"preprocess": 1.0, "encode": 0.25, "prefill": 0.5, "decode": 0.125, "total": 2.0},
        reason,
        "".join(delta.reasoning for delta in deltas) or None,
        logprobs=tuple(token for delta in deltas for token in delta.logprobs),
        tool_calls=tuple(call for delta in deltas for call in delta.tool_calls),
    )
    form = OllamaAnswer(kind, "nano", "1")
    pieces = [piece for delta in deltas if (piece := form.piece(delta)) is not None]
    pieces.append(form.end(answer))
    whole = OllamaAnswer(kind, "nano", "1").whole(answer)
    assert joined(pieces, kind) == joined([whole], kind)
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    figures = ("done_reason", "total_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count")
    assert [pieces[-1][name] for name in figures] == [reason, 2 * 10**9, 5, 75 * 10**7, 3]
    figures_of_end = {name: value for name, value in pieces[-1].items() if name.endswith(("duration", "count"))}
    assert figures_of_end.items() <= whole.items()
    assert all(piece["model"] == "nano" for piece in pieces)


def test_no_duration_is_zero_where_clients_divide_by_it() -> None:
    found = OllamaAnswer("chat", "nano").whole(Answer("a", Usage(1, 0, 1), {"decode": 0.0}, "stop"))
    assert found["eval_duration"] > 0
    assert found["total_duration"] > 0


def test_a_moment_is_as_rfc_3339_has_it() -> None:
    assert timestamp(0.5) == "1970-01-01T00:00:00.500000Z"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "messages[1].content[0]: The data: URL is not valid base64. Expected data:image/png;base64,...",
            "messages[1].images[0] is not valid base64",
        ),
        ("messages[0].content[2]: The data: URL is empty. Check it.", "messages[0].images[2] is empty. Check it."),
        ("messages[0].content[0]: expected an object", "messages[0].content[0]: expected an object"),
        ("repetition_penalty=9000 is too much", "repeat_penalty=9000 is too much"),
        ("the max_tokens=3 of others", "the max_tokens=3 of others"),
    ],
)
def test_an_error_names_what_the_client_sent(said: str, shown: str) -> None:
    assert ollama_error(said) == {"error": shown}
    assert ollama_error(said, has_messages=False)["error"] == shown.replace("messages[1].images", "images").replace(
        "messages[0].images", "images"
    )
