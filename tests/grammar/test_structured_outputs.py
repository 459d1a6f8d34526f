"""Descriptions of structured outputs: exactly one kind, within its limits, kept as text that can be hashed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.grammar.structured_outputs import StructuredOutputs

TAKEN = ("json", "regex", "choice", "grammar", "tools")


def deep(levels: int) -> dict[str, Any]:
    return {"items": deep(levels - 1)} if levels else {}


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **function}}]


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"json": {}, "regex": "a"},
        {"json_object": "yes"},
        {"json": "[1]"},
        {"json": "{"},
        {"json": "[" * 60000},
        {"json": deep(65)},
        {"json": {1: 2}},
        {"json": {"const": float("nan")}},
        {"json": {"const": "\ud800"}},
        {"json": {"description": "x" * 65536}},
        {"json": {"x-guidance": {"lenient": True}}},
        {"json": {"items": {"type": "object", "minProperties": 2}}},
        {"regex": "a" * 4097},
        {"regex": 3},
        *(
            {kind: value}
            for kind in ("json", "regex", "choice", "grammar", "tools")
            for value in (0, np.ones(2), 10**5000)
        ),
        {"json_object": 10**5000},
        {"json_object": np.ones(2)},
        {"tools": tool(), "tool_choice": 10**5000},
        {"choice": []},
        {"choice": "abc"},
        {"choice": ["a"] * 1001},
        {"choice": [1]},
        {"grammar": "x" * 65537},
        {"tools": []},
        {"tools": [{"type": "function"}]},
        {"tools": tool(name="a<b")},
        {"tools": tool() * 2},
        {"tools": [tool(name=f"f{i}")[0] for i in range(129)]},
        {"tools": tool(), "tool_choice": "g"},
        {"tools": tool(parameters=[])},
        {"regex": "a", "tool_choice": "required"},
    ],
    ids=lambda kinds: " ".join(kinds),
)
def test_descriptions_that_are_malformed_or_over_a_limit_are_refused(kinds: dict[str, Any]) -> None:
    with pytest.raises(PocketVLMError) as caught:
        StructuredOutputs(**kinds)
    assert len(str(caught.value)) < 300


def test_descriptions_are_hashable_and_keep_the_order_of_properties() -> None:
    given = {"type": "object", "properties": {"z": {}, "a": {"const": "é"}}}
    spec = StructuredOutputs(json=given)
    assert spec == StructuredOutputs(json=json.dumps(given, indent=3))
    assert hash(spec) == hash(StructuredOutputs(json=dict(given)))
    assert spec.json == '{"type":"object","properties":{"z":{},"a":{"const":"é"}}}'
    assert StructuredOutputs(choice=["a", "b"]).choice == ("a", "b")


def test_response_formats_of_openai() -> None:
    read = StructuredOutputs.from_response_format
    assert read({"type": "text"}) is None
    assert read({"type": "json_object"}) == StructuredOutputs(json_object=True)
    inner = {"name": "receipt", "schema": {"type": "object"}, "strict": True}
    assert read({"type": "json_schema", "json_schema": inner}) == StructuredOutputs(json={"type": "object"})
    for wrong in (
        {"type": "grammar"},
        {},
        "text",
        {"type": "text", "schema": {}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {**inner, "strict": "yes"}},
        {"type": "json_schema", "json_schema": {**inner, "other": 1}},
    ):
        with pytest.raises(ConfigError):
            read(wrong)  # type: ignore[arg-type]
