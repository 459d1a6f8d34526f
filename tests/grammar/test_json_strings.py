r"""Characters that JSON must escape, or may: what a grammar lets through is valid, and what is valid can be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.compiler import GrammarCompiler
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "src" / "pocketvlm" / "assets" / "nano"
CHARACTERS = [*map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFF, 0x1F600)), *'"\\/']
SCHEMAS: dict[str, Any] = {
    "const": lambda text, _: {"const": text},
    "enum": lambda text, _: {"enum": [text, 1]},
    "in a list": lambda text, _: {"const": [text]},
    "in an object": lambda text, _: {"const": {text: text}},
    "property": lambda text, _: {"properties": {text: {"const": 1}}, "required": [text], "type": "object"},
    "closed": lambda text, _: {
        "type": "object",
        "required": [text],
        "additionalProperties": False,
        "properties": {text: {"const": text}},
    },
    "pattern": lambda _, pattern: {"type": "string", "pattern": f"^a{pattern}b$"},
    "class": lambda _, pattern: {"type": "string", "pattern": f"^a[{pattern}]b$"},
}
VALUES: dict[str, Any] = {
    "in a list": lambda text: [text],
    "in an object": lambda text: {text: text},
    "property": lambda text: {text: 1},
    "closed": lambda text: {text: text},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(NANO)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids)
    yield compiler
    compiler.close()


def lets_through(compiler: GrammarCompiler, tokenizer: Tokenizer, spec: StructuredOutputs, text: str) -> bool:
    tokens = [*tokenizer.encode_plain(text), min(tokenizer.stop_ids)]
    return all(map(compiler.compile(spec).start().accept, tokens))


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_character_is_written_and_none_is_dropped(
    kind: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    for character in CHARACTERS:
        schema = SCHEMAS[kind](f"a{character}b", "\\\\" if character == "\\" else character)
        validator, written = Draft202012Validator(schema), 0
        for text in (f"a{character}b", "ab", "ax"):
            value = VALUES.get(kind, str)(text)
            raw = json.dumps(value, ensure_ascii=False)
            # DEL is raw in names, escaped in values.
            for spelling in {json.dumps(value), raw, r"\u007f".join(raw.rsplit("\x7f", 1))}:
                if lets_through(compiler, tokenizer, StructuredOutputs(json=schema), spelling):
                    assert validator.is_valid(json.loads(spelling)), (schema, spelling)
                    written += text == f"a{character}b"
        assert written, schema


@pytest.mark.parametrize("character", ["\x00", "\x01", "\x1f", "\x7f"])
def test_one_alone_is_written(character: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    spec = StructuredOutputs(json={"const": character})
    assert lets_through(compiler, tokenizer, spec, f'"\\u{ord(character):04x}"')


@pytest.mark.parametrize(
    "pattern",
    ["^a\\x7fb$", "^a\\x{1}b$", "^a\\u0001b$", "^a\\U00000001b$", "^a\\vb$", "^a[\\x01-\\x01]b$", "^a(\x01b|c)$"],
)
def test_patterns_name_characters_in_many_ways(pattern: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    spec = StructuredOutputs(json={"type": "string", "pattern": pattern})
    assert not lets_through(compiler, tokenizer, spec, '"ab"')
    assert any(lets_through(compiler, tokenizer, spec, f'"a\\u{code:04x}b"') for code in (1, 0xB, 0x7F))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"const": "\x01b"}}},
        {"properties": {"a": {"type": "string", "pattern": "^x\\x7fy$"}}, "additionalProperties": True},
        *(
            {"properties": {"a": {"type": "string", "pattern": f"^a{character}b$"}}}
            for character in ("\\\x01", "[[\x01]]", "[[:cntrl:]&&\\x01]", "[^\\x00\\x02-\\U0010ffff]")
        ),
        {"patternProperties": {"^a\x7fb$": {"const": 1}}, "additionalProperties": False},
        {"anyOf": [{"const": "a\x00"}, {"$ref": "#/$defs/o"}], "$defs": {"o": {"properties": {"a": {"const": 1}}}}},
    ],
)
def test_beside_further_properties_they_are_refused_in_one_line(schema: Any, compiler: GrammarCompiler) -> None:
    with pytest.raises(ConfigError, match=r"holds U\+00.*additionalProperties to false") as caught:
        compiler.compile(StructuredOutputs(json=schema))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["^[\\x00-\\x1f]*x$", "^[^\\x7f]+$", "^[\\u4e00-\\u9fff]$", "\\s", "^\\\\x01$"])
def test_classes_and_other_characters_stay_allowed_there(pattern: str, compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputs(json={"properties": {"a": {"type": "string", "pattern": pattern}}}))


def test_the_escape_never_spells_the_name_of_a_property(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    inner = {"type": "object", "properties": {"a": {"const": "\x01b"}}, "additionalProperties": False}
    spec = StructuredOutputs(json=inner)
    assert lets_through(compiler, tokenizer, spec, '{"a": "\\u0001b"}')
    assert not lets_through(compiler, tokenizer, spec, '{"\\u0061": "\\u0001b"}')


@pytest.mark.parametrize("character", CHARACTERS)
def test_choices_and_regular_expressions_hold_every_character(
    character: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    text = f"a{character}b"
    escaped = "\\\\" if character == "\\" else character
    for spec in (StructuredOutputs(choice=(text,)), StructuredOutputs(regex=f"a{escaped}b")):
        assert lets_through(compiler, tokenizer, spec, text)
        assert not lets_through(compiler, tokenizer, spec, "ab")


def _tool(schema: Any) -> StructuredOutputs:
    parameters = {"type": "object", "properties": {"p": schema}, "required": ["p"]}
    return StructuredOutputs(
        tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}], tool_choice="required"
    )


@pytest.mark.parametrize("character", CHARACTERS)
def test_tool_parameters_hold_every_character(character: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    control = tokenizer.control_tokens
    for schema in ({"enum": [f"a{character}b"]}, {"type": "string", "pattern": f"^a{re.escape(character)}b$"}):
        for text in (f"a{character}b", "ab"):
            call = f"\n<function=f>\n<parameter=p>\n{text}\n</parameter>\n</function>\n"
            tokens = [control["<tool_call>"], *tokenizer.encode_plain(call), control["</tool_call>"]]
            assert all(map(compiler.compile(_tool(schema)).start().accept, tokens)) == (text != "ab")


def test_json_of_a_tool_refuses_what_it_would_drop(compiler: GrammarCompiler) -> None:
    with pytest.raises(ConfigError, match=r"tool 'f': parameter 'p': .*control character"):
        compiler.compile(_tool({"type": "array", "items": {"const": "a\x01b"}}))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (StructuredOutputs(regex="("), "unclosed group"),
        (StructuredOutputs(regex="(" * 3000), "unclosed group"),
        (StructuredOutputs(json={"type": "string", "pattern": "(?!x)"}), "look-around"),
        (StructuredOutputs(json={"patternProperties": {"[": True}}), "unclosed character class"),
        (StructuredOutputs(grammar="start: /a{3,1}/"), "invalid repetition count range"),
        (_tool({"type": "string", "pattern": "("}), "unclosed group"),
    ],
    ids=["regex", "long", "pattern", "property", "grammar", "tool"],
)
def test_a_bad_regular_expression_is_refused_with_the_reason(
    spec: StructuredOutputs, reason: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        compiler.compile(spec)
    assert "\n" not in str(caught.value)
