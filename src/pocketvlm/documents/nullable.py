"""Data and its JSON schema → the fields that may be null, and what each is where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pocketvlm.documents.fields import join

_KINDS = ("string", "number", "integer", "boolean")


def nullable_fields(data: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, one of string, number, integer, boolean) of each value that is no object and no array and may be null;
    "string" where the schema leaves it open."""
    yield from _nullable(data, schema, schema, "")


def _nullable(value: Any, part: Any, root: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    choices = list(_choices(part, root, set()))
    if isinstance(value, dict):
        found = next((one for one in choices if "properties" in one), {})
        for key, inner in value.items():
            yield from _nullable(inner, found.get("properties", {}).get(key, {}), root, join(name, key))
        return
    if isinstance(value, list):
        items: Any = next((one["items"] for one in choices if "items" in one), {})
        for index, inner in enumerate(value):
            yield from _nullable(inner, items, root, join(name, index))
        return
    kinds = [kind for one in choices for kind in _types(one)]
    if value is None or "null" in kinds:
        yield name, next((kind for kind in kinds if kind in _KINDS), "string")


def _choices(part: Any, root: Mapping[str, Any], seen: set[int]) -> Iterator[Mapping[str, Any]]:
    """A schema, and those that it may stand for: references within the same file, and alternatives; each once, as a
    schema may name itself."""
    if not isinstance(part, Mapping) or id(part) in seen:
        return
    seen.add(id(part))
    yield part
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for key in reference[2:].split("/"):
            key = key.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        yield from _choices(target, root, seen)
    for way in ("anyOf", "oneOf", "allOf"):
        alternatives = part.get(way)
        for one in alternatives if isinstance(alternatives, list) else ():
            yield from _choices(one, root, seen)


def _types(part: Mapping[str, Any]) -> list[str]:
    kinds = part.get("type", [])
    return [kinds] if isinstance(kinds, str) else [kind for kind in kinds if isinstance(kind, str)]
