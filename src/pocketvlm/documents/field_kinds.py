"""Data and its JSON schema → what each field is, also where it is null, and whether it may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pocketvlm.documents.fields import join
from pocketvlm.documents.schema import meanings

_KINDS = ("string", "number", "integer", "boolean")
NOTHING = "nothing"  # an object or an array that is null: no text can stand for it
_DEEPEST = 8  # of what a new item holds: a schema may name itself


class Kind(NamedTuple):
    """What a field is where it is not null: one of string, number, integer, boolean, nothing; and whether it may be
    null."""

    kind: str
    nullable: bool


def field_kinds(data: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, Kind]]:
    """(field, kind) of each value that is no object and no array; "string" is null where the schema leaves it open."""
    yield from _below(data, schema, schema, "")


class NewItem(NamedTuple):
    """What an item begins as that is added to an array: null where a person must say what it is; the kinds of its
    fields, by their names in it ("" is itself); and what the arrays in it are extended by."""

    item: Any
    kinds: dict[str, Kind]
    arrays: dict[str, NewItem]


def array_items(data: Any, schema: Mapping[str, Any]) -> dict[str, NewItem]:
    """Of each array whose items the schema describes, by its name."""
    return dict(_arrays(data, schema, schema, "", _DEEPEST))


def _arrays(value: Any, part: Any, root: Mapping[str, Any], name: str, depth: int) -> Iterator[tuple[str, NewItem]]:
    if depth == 0:
        return
    choices = list(meanings(part, root, set()))
    if isinstance(value, dict):
        found = next((one for one in choices if "properties" in one), {})
        for key, inner in value.items():
            yield from _arrays(inner, found.get("properties", {}).get(key, {}), root, join(name, key), depth)
    if isinstance(value, list) and (items := next((one["items"] for one in choices if "items" in one), None)):
        item = _new(items, root, _DEEPEST, is_added=True)
        inside = dict(_arrays(item, items, root, "", depth - 1))
        yield name, NewItem(item, dict(_below(item, items, root, "")), inside)
        for index, inner in enumerate(value):
            yield from _arrays(inner, items, root, join(name, index), depth)


def _new(part: Any, root: Mapping[str, Any], depth: int, *, is_added: bool = False) -> Any:
    """What a value of a schema begins as; one that is added is an object where it may be one."""
    choices = list(meanings(part, root, set()))
    kinds = [kind for one in choices for kind in _types(one)]
    if depth == 0 or ("null" in kinds and not (is_added and any("properties" in one for one in choices))):
        return None
    if fixed := next((one for one in choices if "const" in one or one.get("enum")), None):
        return fixed["const"] if "const" in fixed else fixed["enum"][0]
    if found := next((one for one in choices if "properties" in one), None):
        wanted = found.get("required", list(found["properties"]))
        return {key: _new(found["properties"][key], root, depth - 1) for key in found["properties"] if key in wanted}
    defaults: dict[str, Any] = {"string": "", "boolean": False, "array": [], "object": {}}
    return next((defaults[kind] for kind in kinds if kind in defaults), None)


def _below(value: Any, part: Any, root: Mapping[str, Any], name: str) -> Iterator[tuple[str, Kind]]:
    choices = list(meanings(part, root, set()))
    if isinstance(value, dict):
        found = next((one for one in choices if "properties" in one), {})
        for key, inner in value.items():
            yield from _below(inner, found.get("properties", {}).get(key, {}), root, join(name, key))
        return
    if isinstance(value, list):
        items: Any = next((one["items"] for one in choices if "items" in one), {})
        for index, inner in enumerate(value):
            yield from _below(inner, items, root, join(name, index))
        return
    kinds = [kind for one in choices for kind in _types(one)]
    may_be_null = "null" in kinds or (value is None and not set(kinds) & {"number", "integer"})
    yield name, Kind(_kind(value, kinds), may_be_null)


def _kind(value: Any, kinds: Sequence[str]) -> str:
    """By the schema where the value itself does not tell."""
    if isinstance(value, bool | str):
        return "boolean" if isinstance(value, bool) else "string"
    if value is None:
        is_container = {"object", "array"} & set(kinds)
        return next((kind for kind in kinds if kind in _KINDS), NOTHING if is_container else "string")
    return "integer" if "integer" in kinds and "number" not in kinds else "number"


def _types(part: Mapping[str, Any]) -> list[str]:
    kinds = part.get("type", [])
    return [kinds] if isinstance(kinds, str) else [kind for kind in kinds if isinstance(kind, str)]
