"""Calls in what a model said: whole ones are taken out with typed values, everything else stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing.exceptions import Unresolvable

from pocketvlm.tools.calls import ToolCall, ToolCallSplitter, parse_tool_calls

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


def tool(parameters: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def read(raw: str, schema: Any, definitions: dict[str, Any] | None = None) -> Any:
    """What `raw` stands for under `schema`."""
    (call,) = parse_tool_calls(
        written("f", a=raw), tool({"type": "object", "properties": {"a": schema}, "$defs": definitions or {}})
    )[1]
    return call.arguments["a"]


DEFINITIONS = {
    "n": {"type": "integer"},
    "n or null": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
    "a/b~c": {"type": "boolean"},
    "itself": {"$ref": "#/$defs/itself"},
    "one": {"allOf": [{"$ref": "#/$defs/other"}]},
    "other": {"anyOf": [{"$ref": "#/$defs/one"}, {"type": "integer"}]},
}


@pytest.mark.parametrize(
    ("schema", "raw", "value"),
    [
        ({"$ref": "#/$defs/n"}, "3", 3),
        ({"$ref": "#/$defs/n", "type": "string"}, "3", "3"),
        ({"$ref": "#/$defs/n or null"}, "3", 3),
        ({"$ref": "#/$defs/n%20or%20null"}, "None", None),
        ({"$ref": "#/$defs/n or null/anyOf/0"}, "null", "null"),
        ({"$ref": "#/$defs/a~1b~0c"}, "true", True),
        ({"$ref": "#/$defs/missing"}, "3", "3"),
        ({"$ref": "#/properties/a"}, "3", "3"),
        ({"$ref": "https://example.org/n"}, "3", "3"),
        ({"$ref": 3}, "3", "3"),
        ({"$ref": "#/$defs/itself"}, "3", "3"),
        ({"$ref": "#/$defs/one"}, "3", 3),
        ({"allOf": [{"$ref": "#/$defs/n"}]}, "3", 3),
        ({"allOf": [{}, {"type": ["integer", "string"]}, {"type": ["number", "null"]}]}, "3", 3),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "null"]}]}, "3", "3"),
        ({"allOf": [{"anyOf": [{}, {"type": "integer"}]}, {"type": "number"}]}, "3.5", 3.5),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}], "type": "string"}, "3", "3"),
        ({"anyOf": [{}, {"type": "integer"}]}, "[1]", [1]),
        ({"oneOf": [{"type": "array"}, {"const": 3}]}, "3", 3),
        ({"enum": ["3", "4"]}, "3", "3"),
        ({"enum": [3, 4.5], "type": "integer"}, "4.5", "4.5"),
        ({"enum": [3.0]}, "3", 3),
        ({"const": None}, "null", None),
        ({"minimum": 3}, "5", 5),
        ({"pattern": "^."}, "[1]", "[1]"),
        ({}, "[1]", [1]),
        ({}, "3", "3"),
        (True, "3", "3"),
        (False, "3", "3"),
        ({"type": []}, "3", "3"),
        ({"allOf": 3, "anyOf": None, "enum": "x", "$ref": None}, "3", "3"),
    ],
)
def test_schemas_may_be_put_together(schema: Any, raw: str, value: Any) -> None:
    found = read(raw, schema, DEFINITIONS)
    assert (found, type(found)) == (value, type(value))


def test_parameters_themselves_may_be_put_together() -> None:
    base = {"properties": {"a": {"type": ["integer", "string"]}}}
    parameters = {"$ref": "#/definitions/base", "allOf": [{"properties": {"a": {"type": "number"}}}]}
    (call,) = parse_tool_calls(written("f", a="3", b="3"), tool({**parameters, "definitions": {"base": base}}))[1]
    assert call.arguments == {"a": 3, "b": "3"}


def test_the_first_of_two_tools_of_a_name_counts() -> None:
    integer, text = ({"properties": {"a": {"type": kind}}} for kind in ("integer", "string"))
    assert parse_tool_calls(written("f", a="3"), tool(integer) + tool(text))[1][0].arguments == {"a": 3}


VALUES = st.sampled_from([None, True, 3, 4.5, "x", "3", "null", [1], {"k": 2}])
SCHEMAS = st.recursive(
    st.one_of(
        st.just({}),
        st.booleans(),
        st.sampled_from(
            [{"type": kind} for kind in ("integer", "string", "null", "boolean", "array", "object", "number")]
        ),
        st.lists(st.sampled_from(["integer", "string", "null", "array"]), min_size=1, unique=True).map(
            lambda kinds: {"type": kinds}
        ),
        st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
        VALUES.map(lambda value: {"const": value}),
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "$ref": st.sampled_from(["#/$defs/a", "#/$defs/b", "#/$defs/c", "#/$defs/d"]),
            "type": st.sampled_from(["integer", "string", "array"]),
        },
    ),
    max_leaves=8,
)


@given(SCHEMAS, st.lists(SCHEMAS, min_size=3, max_size=3), VALUES)
def test_a_valid_value_that_can_be_written_is_read_as_one_of_its_type(
    schema: Any, definitions: list[Any], value: Any
) -> None:
    """References go to later definitions, or back to themselves through a cycle; reading ends either way."""
    parameters = {"properties": {"a": schema}, "$defs": dict(zip("abc", definitions, strict=True))}
    raw = value if isinstance(value, str) else json.dumps(value)
    found = read(raw, schema, parameters["$defs"])
    assert found in (raw, None if raw == "null" else json.loads(raw) if raw != "x" else raw)
    try:
        valid = Draft202012Validator(parameters).is_valid({"a": value})
        as_text = Draft202012Validator(parameters).is_valid({"a": raw})
        read_is_valid = Draft202012Validator(parameters).is_valid({"a": found})
    except (RecursionError, Unresolvable):
        return  # a schema that refers to itself, or to nothing, has no meaning
    # A text that is as good as the value it looks like may be either; else the one that is valid is meant.
    if valid and not as_text and not has_enum([schema, definitions]):
        assert read_is_valid


def has_enum(schemas: Any) -> bool:
    """Whether values are listed somewhere, where two of the same type differ."""
    return '"enum"' in json.dumps(schemas) or '"const"' in json.dumps(schemas)


@pytest.mark.parametrize("word", ["$ref", "allOf", "anyOf", "both"])
def test_long_chains_and_doublings_of_references_end(word: str) -> None:
    """In time in proportion to their number: 2 ** 4_000 steps would never end, and recursion would."""
    count = 4_000

    def link(index: int) -> dict[str, Any]:
        following = {"$ref": f"#/$defs/{index + 1}"}
        return (
            following
            if word == "$ref"
            else {w: [following] * 2 for w in (("allOf", "anyOf") if word == "both" else (word,))}
        )

    definitions = {str(index): link(index) for index in range(count)} | {str(count): {"type": "integer"}}
    assert read("3", {"$ref": "#/$defs/0"}, definitions) == 3
    parameters = {"properties": {str(i): {"$ref": f"#/$defs/{i}"} for i in range(count)}, "$defs": definitions}
    said = written("f", **{str(i): "7" for i in range(count)})
    assert set(parse_tool_calls(said, tool(parameters))[1][0].arguments.values()) == {7}


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


PIECES = st.sampled_from(
    [
        *(written("f", count="1"), written("g", x="a\n</parameter> b"), written("f"), " ", "\n\n", "First.", "x"),
        *(
            "<tool_call>",
            "</tool_call>",
            "<function=f>",
            "</function>",
            "<parameter=text>",
            "</parameter>",
            "<tool_",
            "<",
        ),
    ]
)


@given(st.lists(PIECES, max_size=9).map("".join), st.lists(st.integers(1, 30), min_size=1))
def test_what_comes_in_pieces_is_what_comes_at_once(text: str, sizes: list[int]) -> None:
    splitter, found, at = ToolCallSplitter(TOOLS), list[str | ToolCall](), 0
    while at < len(text):
        size = sizes[at % len(sizes)]
        found += splitter.add(text[at : at + size], is_last=False)
        at += size
    found += splitter.add("", is_last=True)
    beside = "".join(part for part in found if isinstance(part, str))
    calls = tuple(part for part in found if isinstance(part, ToolCall))
    assert (beside, calls) == parse_tool_calls(text, TOOLS)
    assert calls or beside == text


def test_a_call_and_text_come_as_soon_as_they_are_certain() -> None:
    splitter = ToolCallSplitter(TOOLS)
    assert splitter.add("Let me see. <tool", is_last=False) == ["Let me see."]
    assert splitter.add("_call>", is_last=False) == []
    rest = written("f", count="1").removeprefix("<tool_call>")
    assert splitter.add(rest[:-1], is_last=False) == []
    assert splitter.add(rest[-1] + "\nDone", is_last=False) == [ToolCall("f", {"count": 1}), "\n\nDone"]
    assert splitter.add(".", is_last=True) == ["."]
