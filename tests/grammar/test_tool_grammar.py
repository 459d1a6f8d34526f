"""Tools whose schemas are put together of others: what their grammar lets a model write is read as valid arguments."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.random_structures import Walker
from jsonschema import Draft202012Validator

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.compiler import GrammarCompiler
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.tools.calls import ToolCall, parse_tool_calls

NOT_A_FLOAT = re.compile(r"\d[eE]\+?\d{3}")  # which a tool's arguments cannot carry


class Tools:
    """Random answers under the grammar of one tool."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids)
        self.walker = Walker(tokenizer, tokenizer.vocab_size)

    def calls(self, parameters: dict[str, Any], count: int = 12) -> Iterator[ToolCall]:
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        grammar = self.compiler.compile(StructuredOutputs(tools=tools, tool_choice="f"))
        for seed in range(count):
            text = self.tokenizer.decode(self.walker.answer(grammar, random.Random(seed)), skip_special=False)
            beside, calls = parse_tool_calls(text, tools)
            assert calls
            assert not beside
            yield from calls


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Iterator[Tools]:
    tools = Tools(Tokenizer.from_directory(checkpoint))
    yield tools
    tools.compiler.close()


DEFINITIONS = {
    "colour": {"enum": ["red", "né", "3"]},
    "count": {"type": "integer", "minimum": 2, "maximum": 60},
    "point": {"type": "object", "properties": {"x": {"$ref": "#/$defs/count"}}, "required": ["x"]},
    "list": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
    "either": {"anyOf": [{"$ref": "#/$defs/colour"}, {"$ref": "#/$defs/count"}]},
    "again": {"$ref": "#/$defs/either"},
    "a/b~c": {"type": ["boolean", "null"]},
    "tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False},
}
# Schemas that text, JSON or both satisfy, by way of every keyword that schemas are made of schemas with.
COMPOSED: list[dict[str, Any]] = [
    *({"$ref": f"#/$defs/{name}"} for name in (*(name for name in DEFINITIONS if "/" not in name), "a~1b~0c")),
    {"$ref": "#/$defs/point/properties/x"},
    {"$ref": "#/$defs/either/anyOf/1"},
    {"$ref": "#/$defs/count", "maximum": 9, "description": "Few."},
    {"allOf": [{"$ref": "#/$defs/colour"}], "default": "red"},
    {"allOf": [{"type": "string"}, {"maxLength": 4}, {"pattern": "^[a-z]"}]},
    {"allOf": [{"type": ["string", "integer"]}, {"$ref": "#/$defs/again"}]},
    {"allOf": [{"type": ["string", "number"], "minimum": 5}, {"type": ["string", "integer"], "minLength": 2}]},
    {"allOf": [{"enum": ["a", 1, None]}, {"enum": [1, "a", True]}]},
    {"allOf": [{"$ref": "#/$defs/list"}, {"minItems": 1}]},
    {"allOf": [{"$ref": "#/$defs/point"}, {"properties": {"y": {"const": "2"}}, "required": ["y"]}]},
    {"allOf": [{}, {"allOf": [{"allOf": [{"type": "boolean"}]}]}]},
    {"type": "string", "anyOf": [{"pattern": "^x"}, {"pattern": "123$"}, {"type": "integer"}]},
    {"type": ["string", "null"], "$ref": "#/$defs/colour"},
    {"type": ["string", "null"], "allOf": [{"maxLength": 3}]},
    {"anyOf": [{"$ref": "#/$defs/again"}, {"$ref": "#/$defs/list"}, {"type": "null"}]},
    {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "number", "exclusiveMaximum": 1}], "minLength": 2},
    {"anyOf": [{"type": "null"}, {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/a~1b~0c"}]}]},
    {"anyOf": [{"type": "string"}, {"type": ["null", "integer"], "minimum": 3}]},
    {"oneOf": [{"$ref": "#/$defs/colour"}, {"$ref": "#/$defs/count"}, {"const": None}]},
    {"anyOf": [{"type": "string"}, {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "array", "maxItems": 1}]}]},
    {"anyOf": [{"enum": [1, "1", True]}, {"type": "array", "items": {"enum": ["1", 1]}}]},
    {"type": ["integer", "boolean"], "enum": [1, "1", True, 2.0, 0.5]},
    {"const": 2.0, "type": "integer"},
    {"type": "number", "const": 7},
    {"minimum": 3},
    {"pattern": "^[0-9]+$"},
    {"type": "string", "x-order": 1, "nullable": False},
]


@pytest.mark.parametrize("schema", COMPOSED, ids=str)
def test_answers_are_read_back_as_valid_arguments(tiny: Tools, schema: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": DEFINITIONS}
    Draft202012Validator.check_schema(parameters)
    validator, seen = Draft202012Validator(parameters), set()
    for call in tiny.calls(parameters):
        if not NOT_A_FLOAT.search(str(call.arguments)):
            validator.validate(call.arguments)
        seen.add(str(call.arguments))
    assert len(seen) > 1 or "const" in schema


def test_parameters_may_be_put_together_of_several_schemas(tiny: Tools) -> None:
    base = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"maxLength": 3}}, "required": ["a"]}
    more = {"properties": {"b": {"type": ["string", "boolean"]}}, "required": ["b"]}
    parameters = {"$ref": "#/$defs/base", "allOf": [more], "$defs": {"base": base}}
    for call in tiny.calls(parameters):
        Draft202012Validator(parameters).validate(call.arguments)
        assert set(call.arguments) == {"a", "b"}


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array"},
        {"type": "object", "oneOf": [{}]},
        {"type": "object", "required": ["a"]},
        {"properties": {"a>b": {}}},
        {"properties": {"a": False}},
        {"properties": {"a": {"$ref": "#/$defs/b"}}},
        {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$ref": "#/$defs/b"}}},
        {"properties": {"a": {"type": "string", "pattern": "^a|b"}}},
        {"properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}}},
        {"properties": {"a": {"enum": ["</parameter>"]}}},
        {"$ref": "#/$defs/b"},
        {"properties": {"a": {"$ref": "#/properties/b"}, "b": {}}},
        {"properties": {"a": {"$ref": "https://example.org/schema"}}},
        {
            "properties": {"a": {"anyOf": [{}, {"$ref": "#/$defs/b"}]}},
            "$defs": {"b": {"anyOf": [{"$ref": "#/$defs/b"}]}},
        },
        {"properties": {"a": {"type": "string", "not": {"const": "x"}}}},
        {"properties": {"a": {"oneOf": [{"maxLength": 3}, {"minLength": 2}]}}},
        {"properties": {"a": {"oneOf": [{"type": "string"}, {"minimum": 2}]}}},
        {"properties": {"a": {"allOf": [{"type": "string"}, {"type": "integer"}]}}},
        {"properties": {"a": {"allOf": [{"enum": ["a", 1]}, {"enum": ["b", 2]}]}}},
        {"properties": {"a": {"allOf": [{"anyOf": [{}] * 20}, {"anyOf": [{}] * 20}]}}},
        {"properties": {"a": {}}, "additionalProperties": False, "allOf": [{"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "required": [["a"]]},
    ],
    ids=str,
)
def test_tools_that_cannot_be_held_to_are_refused(tiny: Tools, parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tool 'f'"):
        next(tiny.calls(parameters))
