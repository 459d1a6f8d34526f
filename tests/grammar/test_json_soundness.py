"""Whatever text a compiled schema lets through is valid by that schema, however the text is spelt.

Answers drawn from masks (`test_compiler`) rarely come upon the odd spelling; here texts are made to be odd, and small
enough that many fit. Line ends are left out: Python's `$` matches before one, that of ECMAScript does not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.compiler import GrammarCompiler
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "src" / "pocketvlm" / "assets" / "nano"
NAMES = ("a", "b", "ab", "é", "a b", 'q"', "1", "")
STRINGS = (*NAMES, "\x00", "a\x01", "ab\x7f", "aa", "ba", "😀", "x.y", "9", "2020-01-01")
NUMBERS = ("0", "1", "-1", "-0", "2", "3", "10", "1.0", "2.5", "0.5", "-0.0", "1e0")
CONSTANTS: tuple[Any, ...] = (1, 1.0, 0, 2.5, "a", "é", "", True, False, None, [], [1], {}, {"a": 1}, "a\x01")
PATTERNS = (
    "^a",
    "b$",
    "^$",
    ".",
    "^.$",
    "a|b",
    "^(?:a|b)$",
    "^a|b$",
    "\\d",
    "\\w",
    "\\s",
    "^[^a]*$",
    "\\.",
    "é",
    "b\x7f$",
)


class Odd(random.Random):
    """Draws schemas, and texts that may fit them."""

    def schema(self, depth: int = 0) -> Any:
        if depth > 2 or self.random() < 0.25:
            return self._scalar()
        kind = self.choice(("array", "object", "object", "anyOf", "oneOf", "allOf", "beside"))
        if kind == "array":
            return {"type": "array"} | self._some(
                items=lambda: self.schema(depth + 1),
                prefixItems=lambda: [self.schema(depth + 1) for _ in range(self.randrange(3))],
                minItems=lambda: self.randrange(3),
                maxItems=lambda: self.randrange(3),
            )
        if kind == "object":
            return {"type": "object"} | self._some(
                properties=lambda: {name: self.schema(depth + 1) for name in self.sample(NAMES, self.randrange(3))},
                required=lambda: self.sample(NAMES, self.randrange(2)),
                additionalProperties=lambda: self.choice((False, self.schema(depth + 1))),
                patternProperties=lambda: {self.choice(PATTERNS): self.schema(depth + 1)},
                maxProperties=lambda: self.randrange(3),
            )
        branches = [self.schema(depth + 1), self.schema(depth + 1)]
        if kind != "beside":
            return {kind: branches}
        beside = self.schema(depth + 1)
        return {**(beside if isinstance(beside, dict) else {}), self.choice(("anyOf", "allOf")): branches}

    def _some(self, **keywords: Any) -> dict[str, Any]:
        return {name: make() for name, make in keywords.items() if self.random() < 0.4}

    def _scalar(self) -> Any:
        low, length = self.randrange(-3, 3), self.randrange(3)
        schemas: tuple[Any, ...] = (
            *({"type": kind} for kind in ("string", "integer", "number", "null", "boolean")),
            *({}, True, False, {"const": self.choice(CONSTANTS)}, {"enum": self.sample(CONSTANTS, 3)}),
            *({"type": "string", "minLength": length, "maxLength": length + 1}, {"maxLength": 1}, {"minimum": low}),
            *({"type": "string", "pattern": self.choice(PATTERNS)}, {"pattern": "^a"}, {"exclusiveMinimum": 0}),
            *({"type": ["string", "integer"]}, {"type": "number", "multipleOf": self.choice((0.5, 2, 3))}),
            *({"type": "integer", "exclusiveMaximum": low}, {"minItems": 1}, {"maxItems": 1}, {"required": ["a"]}),
        )
        return self.choice(schemas)

    def text(self, depth: int = 0) -> str:
        kind = self.choice(("number", "word", "string", "array", "object", "object"))
        if kind == "number" or (depth > 2 and kind in ("array", "object")):
            return self.choice(NUMBERS)
        if kind == "word":
            return self.choice(("null", "true", "false"))
        if kind == "string":
            return self._string(self.choice(STRINGS))
        if kind == "array":
            return f"[{', '.join(self.text(depth + 1) for _ in range(self.randrange(3)))}]"
        entries = (f"{self._string(self.choice(NAMES))}: {self.text(depth + 1)}" for _ in range(self.randrange(4)))
        return f"{{{', '.join(entries)}}}"

    def _string(self, value: str) -> str:
        escaped = "".join(f"\\u{unit:04x}" for unit in memoryview(value.encode("utf-16-le")).cast("H"))
        return self.choice((json.dumps(value), json.dumps(value, ensure_ascii=False), f'"{escaped}"'))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_let_through_is_valid(seed: int) -> None:
    odd, tokenizer = Odd(seed), Tokenizer.from_directory(NANO)
    compiler, stop = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids), min(tokenizer.stop_ids)
    compiled = passed = 0
    try:
        for _ in range(60):
            schema = odd.schema()
            try:
                grammar = compiler.compile(StructuredOutputs(json=schema))
            except ConfigError:
                continue
            compiled += 1
            validator = Draft202012Validator(schema)
            for _ in range(80):
                text = odd.text()
                if all(map(grammar.start().accept, [*tokenizer.encode_plain(text), stop])):
                    passed += 1
                    assert validator.is_valid(json.loads(text)), (schema, text)
    finally:
        compiler.close()
    assert compiled > 20
    assert passed > 200
