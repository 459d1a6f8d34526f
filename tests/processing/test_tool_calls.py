"""Calls in what a model said: whole ones are taken out with typed values, everything else stays text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.processing.tool_calls import ToolCall, parse_tool_calls

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "count": {"type": "integer"},
                    "share": {"type": "number"},
                    "on": {"type": "boolean"},
                    "some": {"type": "array"},
                    "maybe": {"type": ["integer", "null"]},
                },
            },
        },
    }
]


def written(name: str, **values: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("text", "3", "3"),
        ("text", "two\nlines", "two\nlines"),
        ("text", "a </parameter> within", "a </parameter> within"),
        ("count", "3", 3),
        ("count", "3.0", 3),
        ("count", "three", "three"),
        ("share", "3", 3),
        ("on", "True", True),
        ("on", "true", True),
        ("some", "[1, 2]", [1, 2]),
        ("maybe", "None", None),
        ("other", "3", "3"),
        ("share", "1e999", "1e999"),
    ],
)
def test_values_are_typed_by_the_schema(key: str, raw: str, value: Any) -> None:
    assert parse_tool_calls(written("f", **{key: raw}), TOOLS) == ("", (ToolCall("f", {key: value}),))


def test_text_beside_calls_is_kept_and_calls_are_in_order() -> None:
    said = f"First.\n\n{written('f', count='1')}\n{written('g', x='y')}\nLast."
    text, calls = parse_tool_calls(said, TOOLS)
    assert text == "First.\n\nLast."
    assert calls == (ToolCall("f", {"count": 1}), ToolCall("g", {"x": "y"}))


@given(st.integers(0, 120))
def test_a_call_that_is_cut_off_stays_text(length: int) -> None:
    whole = written("f", text="value", count="12")
    cut = whole[: min(length, len(whole) - 1)]
    assert parse_tool_calls(cut, TOOLS) == (cut, ())


@given(
    st.lists(
        st.sampled_from(
            ["<tool_call>", "<function=f>", "<parameter=a>", "</parameter>", "</function>", "</tool_call>", "x", "\n"]
        ),
        max_size=30,
    )
)
def test_any_pieces_give_text_or_calls_and_nothing_is_lost(pieces: list[str]) -> None:
    said = "".join(pieces)
    text, calls = parse_tool_calls(said, TOOLS)
    if not calls:
        assert text == said
    assert said.count("x") == text.count("x") + sum(str(call.arguments).count("x") for call in calls)


def test_a_long_hostile_answer_stays_text() -> None:
    """In time in proportion to its length: with a square of it this would take hours."""
    said = "<tool_call>\n<function=f>\n" + "<parameter=a>\n</parameter>x" * 300_000
    assert parse_tool_calls(said, TOOLS) == (said, ())
