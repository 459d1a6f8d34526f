"""Random JSON schemas and tools, and random answers that keep to a grammar: what tests and the benchmark draw from."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pocketvlm.grammar.compiler import Grammar, GrammarState
from pocketvlm.processing.prompt.tokenizer import Tokenizer

PATTERNS = ("^[a-z]{2,6}$", "^[A-Z][0-9]+$", "[0-9]{3}", "^(red|green)-[a-f0-9]{4}$", "^é+$")
NAMES = ("name", "total", "a b", 'quo"te', "größe", "x", "items", "back\\slash", "日本", "price")


def random_schema(rng: random.Random) -> dict[str, Any]:
    """A JSON schema that llguidance supports, satisfiable by a short document; some refer to themselves."""
    schema = _schema(rng, 0)
    if rng.random() < 0.2:
        node = {
            "type": "object",
            "properties": {"value": _scalar(rng), "next": {"$ref": "#/$defs/node"}, "all": {"type": "array"}},
            "required": ["value"],
            "additionalProperties": False,
        }
        node["properties"]["all"]["items"] = {"$ref": "#/$defs/node"}
        schema = {
            "type": "object",
            "properties": {"tree": {"$ref": "#/$defs/node"}, "also": schema},
            "required": ["tree"],
            "$defs": {"node": node},
        }
    return schema


def random_tool(rng: random.Random, name: str) -> dict[str, Any]:
    """An OpenAI tool definition with up to five parameters of all kinds."""
    names = rng.sample(NAMES, rng.randrange(6))
    properties = {key: rng.choice((_scalar, _of_several_types, lambda r: _schema(r, 1)))(rng) for key in names}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [key for key in names if rng.random() < 0.5],
    }
    return {"type": "function", "function": {"name": name, "description": "Does things.", "parameters": parameters}}


def _of_several_types(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        (
            {"type": ["string", "null"], "maxLength": 6},
            {"type": ["string", "integer"], "minimum": 3},
            {"anyOf": [{"enum": ["low", "high"]}, {"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
            {"enum": ["auto", 7, None, "né"]},
            {},
        )
    )


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = (_scalar, _scalar) if depth > 2 else (_scalar, _array, _object, _object, _union, _intersection)
    kind = rng.choice(kinds)
    return kind(rng) if kind is _scalar else kind(rng, depth)  # type: ignore[operator,call-arg]


def _scalar(rng: random.Random) -> dict[str, Any]:
    low, length = rng.randrange(-50, 50), rng.randrange(5)
    return rng.choice(
        (
            {"type": "string"},
            {"type": "string", "minLength": length, "maxLength": length + rng.randrange(10)},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
            {"type": "integer"},
            {"type": "integer", "minimum": low, "maximum": low + rng.randrange(200)},
            {"type": "integer", "multipleOf": rng.choice((2, 5, 7))},
            {"type": "number"},
            {"type": "number", "exclusiveMinimum": low, "maximum": low + 2.5},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": rng.sample(["red", "", 'a"b', 12, -1, True, None, "日"], 3)},
            {"const": rng.choice(["fixed", 3, [1, "x"], {"k": False}])},
            {"type": ["integer", "null"]},
        )
    )


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randrange(3)
    schema: dict[str, Any] = {"type": "array", "items": _schema(rng, depth + 1), "minItems": least}
    if rng.random() < 0.5:
        schema["maxItems"] = least + rng.randrange(4)
    if rng.random() < 0.2:
        schema["prefixItems"] = [_scalar(rng)]
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randrange(1, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _schema(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.7:
        schema["additionalProperties"] = rng.choice((False, {"type": "integer"}))
    return schema


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(rng, depth + 1) for _ in range(rng.randrange(2, 4))]}


def _intersection(rng: random.Random, depth: int) -> dict[str, Any]:
    left, right = rng.sample(NAMES, 2)
    parts = [
        {"type": "object", "properties": {key: _schema(rng, depth + 1)}, "required": [key]} for key in (left, right)
    ]
    return {"allOf": parts}


def allowed_ids(state: GrammarState, vocab_size: int) -> list[int]:
    """Ids that the mask of `state` allows, in order."""
    mask_W = np.zeros(-(-vocab_size // 32), np.int32)
    state.fill_mask(mask_W)
    return np.flatnonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little")).tolist()


class Walker:
    """Draws random answers, in a hurry to finish.

    Args:
        vocab_size: V of the masks.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, most: int = 4000) -> None:
        self.tokenizer, self.vocab_size, self.most = tokenizer, vocab_size, most
        spelt = (b'"', b"}", b"]")
        self.closing = frozenset(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) in spelt)
        self.opening = tokenizer.control_id("<tool_call>")
        # What ends a string that has to hold more than chance would bring.
        self.endings = [tokenizer.encode_plain(text) for text in ("\n</parameter>\n", "123\n</parameter>\n", '123"')]

    def steps(self, grammar: Grammar, rng: random.Random) -> Iterator[tuple[GrammarState, list[int], int]]:
        """State before a token, what is allowed there, and the token drawn; the last one is a stop id."""
        state, waiting = grammar.start(), list[int]()
        for step in range(self.most):
            allowed = allowed_ids(state, self.vocab_size)
            assert allowed, "nothing is allowed"
            hurry = 0.9 if step > 200 else 0.3
            if not waiting and rng.random() < hurry:
                calls = [token for token in allowed if token == self.opening and rng.random() < 0.5]
                waiting = calls or self._ending(state, allowed)
            going_on = [token for token in allowed if token not in self.tokenizer.stop_ids]
            token = waiting.pop(0) if waiting else rng.choice(going_on or allowed)
            yield state, allowed, token
            assert state.accept(token), f"token {token} was in the mask and was not accepted"
            if token in self.tokenizer.stop_ids:
                return
            if state.is_finished:
                waiting = self._ending(state, allowed_ids(state, self.vocab_size))
        raise AssertionError(f"no end after {self.most} tokens")

    def _ending(self, state: GrammarState, allowed: list[int]) -> list[int]:
        """The tokens that would end the most at once; none where nothing can be ended."""
        if stops := [token for token in allowed if token in self.tokenizer.stop_ids]:
            return stops[-1:]
        for ending in self.endings:
            tried = state.copy()
            if all(map(tried.accept, ending)):
                return ending.copy()
        return [token for token in allowed if token in self.closing][:1]

    def answer(self, grammar: Grammar, rng: random.Random) -> list[int]:
        """The ids of an answer, its stop id left out."""
        return [token for _, _, token in self.steps(grammar, rng)][:-1]

    def timed(self, grammar: Grammar, rng: random.Random) -> tuple[list[int], list[float]]:
        """An answer, and the seconds that `fill_mask` and `accept` took for each of its tokens."""
        ids = self.answer(grammar, rng)
        state, mask_W, seconds = grammar.start(), np.zeros(-(-self.vocab_size // 32), np.int32), []
        for token in ids:
            began = time.perf_counter()
            state.fill_mask(mask_W)
            state.accept(token)
            seconds.append(time.perf_counter() - began)
        return ids, seconds


def read_json(text: str) -> Any:
    """Strict JSON: no NaN, no infinity spelt out."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)
