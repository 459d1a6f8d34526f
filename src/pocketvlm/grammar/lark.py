"""Pieces of a grammar in llguidance's variant of Lark's notation: text, regular expressions and JSON schemas → text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pocketvlm.grammar.json_numbers import keep_numbers

# Without \uXXXX: further properties could spell the name of a property that has a schema with it.
_ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}


def literal(text: str) -> str:
    """Return a terminal that is `text`."""
    return json.dumps(text, ensure_ascii=False)


def any_of(alternatives: Iterable[str]) -> str:
    """Return the choice between several."""
    return " | ".join(alternatives)


def regex(expression: str) -> str:
    """Return a terminal that matches all of `expression`. Slashes and line breaks in it are escaped."""
    escapes = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
    escaped = re.sub(r"(?s)\\.|[/\n\r]", lambda found: escapes.get(found[0][-1], found[0]), expression)
    return f"/{escaped or '(?:)'}/"


def inline_json(schema: Any, options: Mapping[str, Any]) -> str:
    """Return JSON of a schema; `options` are llguidance's `x-guidance`.

    Raises:
        ConfigError: the compiler would not hold answers to a number of the schema.
    """
    # A schema that is just `true` or `false` has no place for options.
    schema = keep_numbers(schema) if isinstance(schema, dict) else {"anyOf": [schema]}
    return f"%json {json.dumps({**schema, 'x-guidance': {**_ESCAPES, **options}}, ensure_ascii=False)}"
