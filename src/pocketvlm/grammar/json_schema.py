"""Where a JSON schema holds schemas: a schema → itself and every schema in it or behind its references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from pocketvlm.errors import ConfigError

# Where a JSON schema holds schemas: under a name of their own, in a list, or alone.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ALONE = (
    *("additionalProperties", "additionalItems", "items", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedProperties", "unevaluatedItems"),
)
# Keywords whose values are data. What a reference into them would lead to is no schema.
_DATA = frozenset(("const", "enum", "default", "examples"))


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield `schema` and all schemas in it, each once; the compiler follows `$ref` to any place, and so does this.

    Raises:
        ConfigError: a reference leads into data.
    """
    waiting, seen, references = [schema], set[int](), list[str]()
    while waiting or references:
        if not waiting:
            waiting += _referred(schema, references.pop(), seen)
            continue
        part = waiting.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        for key in _NAMED:
            if isinstance(part.get(key), dict):
                waiting += part[key].values()
        for key in _LISTED:
            if isinstance(part.get(key), list):
                waiting += part[key]
        waiting += [part[key] for key in _ALONE if key in part]
        if isinstance(part.get("$ref"), str):
            references.append(part["$ref"])


def _referred(schema: Any, reference: str, seen: set[int]) -> list[Any]:
    """Return what a JSON pointer leads to, where that was not seen before; the compiler judges whether it exists."""
    if not reference.startswith("#/"):
        return []
    found, steps = schema, [step.replace("~1", "/").replace("~0", "~") for step in unquote(reference).split("/")[1:]]
    for step in steps:
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdecimal() and int(step[:9]) < len(found):
            found = found[int(step[:9])]
        else:
            return []
    if id(found) in seen:
        return []
    if not _DATA.isdisjoint(steps):
        raise ConfigError(f"$ref {reference!r:.60} leads into data", hint="Put the schema under $defs.")
    return [found]
