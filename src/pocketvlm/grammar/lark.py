"""Pieces of a grammar in llguidance's variant of Lark's notation: text, regular expressions and JSON schemas → text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.json_numbers import keep_numbers
from pocketvlm.grammar.json_strings import needs_unicode_escapes

# Options of JSON on one line.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_ESCAPES = 'nrbtf\\"'  # after a backslash, beside "u" where `json_strings` allows it


def literal(text: str) -> str:
    """Return a terminal that is `text`."""
    # The notation takes DEL no more than JSON takes the characters below the space.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def any_of(alternatives: Iterable[str]) -> str:
    """Return the choice between several."""
    return " | ".join(alternatives)


def regex(expression: str) -> str:
    """Return a terminal that matches all of `expression`. Slashes and line breaks in it are escaped."""
    escapes = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
    escaped = re.sub(r"(?s)\\.|[/\n\r]", lambda found: escapes.get(found[0][-1], found[0]), expression)
    return f"/{escaped or '(?:)'}/"


def inline_json(schema: Any, options: Mapping[str, Any], *, is_alone: bool = True) -> str:
    """Return JSON of a schema.

    Args:
        options: llguidance's `x-guidance`.
        is_alone: no other JSON is in the grammar. The compiler quotes all strings of a grammar by the same escapes.

    Raises:
        ConfigError: the compiler would not hold answers to a number or a string of the schema.
    """
    needs_unicode = needs_unicode_escapes(schema)
    if needs_unicode and not is_alone:
        raise ConfigError("a string of its schema holds a control character, which is unsupported in JSON of a tool")
    options = {"json_allowed_escapes": _ESCAPES + "u" * needs_unicode, **options}
    # A schema that is just `true` or `false` has no place for options.
    schema = keep_numbers(schema) if isinstance(schema, dict) else {"anyOf": [schema]}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"
