"""Numbers in schemas: an answer keeps to them to the last digit, or the schema is refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from helpers.random_structures import Walker
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.compiler import Grammar, GrammarCompiler
from pocketvlm.grammar.json_numbers import keep_numbers
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "src" / "pocketvlm" / "assets" / "nano"


class Judge:
    """Compiles schemas for nano's vocabulary, draws answers and asks an independent validator about them."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_directory(NANO)
        self.compiler = GrammarCompiler(self.tokenizer, self.tokenizer.vocab_size, self.tokenizer.stop_ids)
        self.walker = Walker(self.tokenizer, self.tokenizer.vocab_size)

    def compile(self, schema: Any) -> Grammar:
        return self.compiler.compile(StructuredOutputs(json=schema))

    def accepts(self, schema: Any, text: str) -> bool:
        ids = [*self.tokenizer.encode_plain(text), min(self.tokenizer.stop_ids)]
        return all(map(self.compile(schema).start().accept, ids))

    def answers(self, schema: Any, count: int) -> Iterator[str]:
        grammar = self.compile(schema)
        for seed in range(count):
            yield self.tokenizer.decode(self.walker.answer(grammar, random.Random(seed)))


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.compiler.close()


def is_valid(schema: Any, text: str) -> bool:
    """By the numbers as they are written, however many digits they have, and as Python reads them."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    with localcontext(Context(prec=2000)):
        by_digits = Draft202012Validator(exact).is_valid(json.loads(text, parse_float=Decimal))
    # Remainders of doubles are not what anybody means by a multiple of 0.1.
    rest = {key: value for key, value in schema.items() if key != "multipleOf"}
    return by_digits and Draft202012Validator(rest).is_valid(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "allowed", "others"),
    [
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.001}, ["0.0005", "0.0000001"], ["0", "-0", "0.0", "0.001"]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 1.0000001}, ["1.00000005"], ["1", "1.0", "1.0000001"]),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5", "-0.1"], ["0", "-0", "-0.0", "-0.51"]),
        ({"exclusiveMinimum": -4, "maximum": -3.5}, ["-3.5", "-3.75"], ["-4", "-4.0", "-3.4"]),
        ({"exclusiveMinimum": 0}, ["0.1", "7", "1000.5"], ["0", "-1"]),
        ({"exclusiveMinimum": True, "minimum": 3}, ["3.5", "4"], ["3"]),
        ({"minimum": 2, "exclusiveMinimum": 2.5}, ["2.6", "3"], ["2", "2.5"]),
        ({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 4}, ["3"], ["2", "4"]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["0", str(2**62), str(-(2**62))], ["9" * 19]),
        ({"type": "integer", "maximum": 2**53}, [str(2**53), "-1"], [str(2**53 + 1)]),
        ({"type": "integer", "exclusiveMaximum": 2**53}, [str(2**53 - 1)], [str(2**53)]),
        ({"maximum": 2**60}, ["0.5", "1152921504606846000"], ["1152921504606847000"]),
        ({"const": 2**60}, [str(2**60)], [str(2**60 + 1)]),
        ({"const": 0.1500000000000004}, ["0.1500000000000004"], ["0.3"]),
        ({"multipleOf": 0.01}, ["0.25", "-3"], ["0.001"]),
        ({"type": "integer", "allOf": [{"multipleOf": 6}, {"multipleOf": 4}]}, ["12", "-24"], ["6", "8"]),
        ({"$ref": "#/x/y", "x": {"y": {"exclusiveMinimum": 0, "maximum": 0.5}}}, ["0.5"], ["0"]),
        ({"$ref": "#/$defs/enum", "$defs": {"enum": {"exclusiveMinimum": 0, "maximum": 0.5}}}, ["0.5"], ["0"]),
    ],
    ids=str,
)  # fmt: skip
def test_bounds_hold_to_the_last_digit(
    judge: Judge, schema: dict[str, Any], allowed: list[str], others: list[str]
) -> None:
    schema = {"type": "number", **schema}
    assert [text for text in allowed if not judge.accepts(schema, text)] == []
    assert [text for text in others if judge.accepts(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 1}, "9007199254740993"),
        ({"const": 12345678901234567890123}, "12345678901234567890123"),
        ({"const": 2**53 + 1}, "9007199254740993"),
        ({"const": 10**400}, "constant 1000"),
        ({"const": 1e300}, "1e\\+300"),
        ({"type": "integer", "const": 1e20}, "1e\\+20"),
        ({"enum": ["a", {"b": [2**63]}]}, "9223372036854775808"),
        ({"type": "integer", "maximum": 2**64 - 1}, "18446744073709551615"),
        ({"minimum": 1e400}, "not JSON"),
        ({"minimum": -(10**30)}, "beyond 64 bits"),
        ({"type": "number", "exclusiveMinimum": 2**63 - 1}, "leaves no number of 64 bits"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-40}, "1e-40"),
        ({"type": "number", "multipleOf": 0.07}, "multipleOf 0.07"),
        ({"type": "number", "multipleOf": 1.0000000000000002}, "multipleOf 1.0000000000000002"),
        ({"type": "integer", "multipleOf": 10**400}, "multipleOf 1000"),
        ({"type": "integer", "allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "multipleOf are too many"),
        ({"properties": {"a": {"items": {"minimum": 2**64}}}}, "beyond 64 bits"),
        ({"$ref": "#/properties/a/const", "properties": {"a": {"const": {"minimum": 3}}}}, "leads into data"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_would_be_changed_is_refused_in_one_line(judge: Judge, schema: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        judge.compile(schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_tools_keep_numbers_too(judge: Judge) -> None:
    for schema in ({"type": "number", "minimum": 2**64}, {"type": ["string", "number"], "minimum": 2**64}):
        parameters = {"type": "object", "properties": {"a": schema}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        with pytest.raises(ConfigError, match=r"tool 'f'.*beyond 64 bits"):
            judge.compiler.compile(StructuredOutputs(tools=tools))


def test_data_and_names_that_look_like_bounds_stay_as_they_are() -> None:
    data = {"exclusiveMinimum": 0, "a": [{"exclusiveMinimum": 0}]}
    schema = {"const": data, "default": data, "properties": {"exclusiveMinimum": {"enum": [data]}}}
    assert keep_numbers(schema) == schema
    given = {"exclusiveMinimum": 3}
    assert keep_numbers(given) != given == {"exclusiveMinimum": 3}


def test_a_further_property_cannot_spell_the_name_of_another(judge: Judge) -> None:
    """Trap: with escapes of any character, the schema of a property could be walked round."""
    for name, escaped in (("a", "\\u0061"), ("é", "\\u00e9"), ("a\n", "a\\u000a"), ("\x7f", "\\u007f")):
        schema = {"type": "object", "properties": {name: {"type": "integer"}}}
        assert json.loads(f'"{escaped}"') == name
        assert not judge.accepts(schema, f'{{"{escaped}": "x"}}')
        assert judge.accepts(schema, '{"other": "x"}')


NEAR = [0, 1, 10, 1000, 2**31, 2**53, 2**60, 2**62, 2**63, 2**64, 10**22, 10**30]
whole = st.builds(
    lambda base, step, sign: sign * (base + step), st.sampled_from(NEAR), st.integers(-3, 3), st.sampled_from([1, -1])
)
decimals = st.builds(
    lambda digits, places: float(Decimal(digits).scaleb(-places)), st.integers(-(10**6), 10**6), st.integers(0, 12)
)
numbers = whole | decimals | st.floats(allow_nan=False, allow_infinity=False)
ranges = st.fixed_dictionaries(
    {"type": st.sampled_from(["number", "integer"])},
    optional={
        "minimum": numbers,
        "maximum": numbers,
        "exclusiveMinimum": numbers,
        "exclusiveMaximum": numbers,
        "multipleOf": st.sampled_from([1, 2, 3, 7, 0.5, 0.1, 0.01, 2.5]),
    },
)


@st.composite
def narrow(draw: st.DrawFn) -> dict[str, Any]:
    """Two bounds that are close to each other: where most goes wrong."""
    low = draw(numbers)
    step = draw(st.sampled_from([0, 1, 2, 1e-9, 1e-3, 0.5, 5]))
    lower = draw(st.sampled_from(["minimum", "exclusiveMinimum"]))
    upper = draw(st.sampled_from(["maximum", "exclusiveMaximum"]))
    return {"type": draw(st.sampled_from(["number", "integer"])), lower: low, upper: low + step}


constants = st.lists(numbers, min_size=1, max_size=3).map(lambda values: {"enum": values})


@settings(max_examples=150, deadline=None)
@given(ranges | narrow() | constants, st.randoms(use_true_random=False))
def test_numbers_are_refused_or_answered_within_their_schema(
    judge: Judge, schema: dict[str, Any], rng: random.Random
) -> None:
    try:
        grammar = judge.compile(schema)
    except ConfigError:
        return
    for _ in range(4):
        text = judge.tokenizer.decode(judge.walker.answer(grammar, rng))
        assert is_valid(schema, text), text


def test_common_schemas_are_not_refused(judge: Judge) -> None:
    """What people write must not fall to the care for digits."""
    for schema in (
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
        {"type": "number", "minimum": -90, "maximum": 90, "multipleOf": 0.01},
        {"type": "integer", "minimum": 1900, "maximum": 2100},
        {"enum": [1, 2.5, -3, 1e6]},
    ):
        for text in judge.answers(schema, 5):
            assert is_valid(schema, text), text
