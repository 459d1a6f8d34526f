"""Checks of the fields of a request's body, whichever API it is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.json_text import HALF_A_CHARACTER, is_text
from pocketvlm.ranges import show_json

# Integers of a body are 64 bits wide: a larger one is refused here, as everything behind would cut it off or fail.
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1


def given_fields(
    body: Any, known: Collection[str], instead: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the fields of a body that are not null.

    Args:
        instead: what to do about fields that are not known; to leave them out, of those that are not in it.

    Raises:
        ConfigError: the body is no object, or has a field that is not known.
    """
    if not isinstance(body, Mapping):
        raise ConfigError(f"the body is {show_json(body)}, expected a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(f"the field {show_json(name)} is not supported", hint=instead.get(name, "Leave it out."))
    return given


def check_fields(given: Mapping[str, Any], table: Mapping[str, tuple[str, tuple[Any, ...]]]) -> None:
    """Check the kind and value of those that are in a table: name → kind, and the only values it may have, if any."""
    for name, (kind, allowed) in table.items():
        if name in given:
            check(name, given[name], kind)
            if allowed and given[name] not in allowed:
                refuse_value(name, given[name], *allowed)


def not_null(field: str, value: Any) -> dict[str, Any]:
    """Return the entries of an object that are not null."""
    return {name: item for name, item in check(field, value, "object").items() if item is not None}


def only_kinds(field: str, value: Any, known: Iterable[str]) -> dict[str, Any]:
    """Return the entries of an object of options, each of them known; none where it was not given."""
    if value is None:
        return {}
    found, names = not_null(field, value), tuple(known)
    for name in found:
        if name not in names:
            raise ConfigError(f"{field}: {show_json(name)} is unknown, expected one of {', '.join(names)}")
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def is_integer(value: Any) -> bool:
    """Whether it is an integer of 64 bits as JSON Schema has it: 300.0 is one, and all that some clients can write."""
    return is_number(value) and value == int(value) and MIN_INTEGER <= value <= MAX_INTEGER


def is_list_of(kind: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(kind, value))


def is_string(value: Any) -> bool:
    return isinstance(value, str)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": is_string,
    "number": is_number,
    "integer": is_integer,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, Mapping),
    "object of strings": lambda value: isinstance(value, Mapping) and all(map(is_string, [*value, *value.values()])),
    "list": lambda value: isinstance(value, list | tuple),
    "list of strings": lambda value: is_list_of(is_string, value),
    "list of integers": lambda value: is_list_of(is_integer, value),
    "string or list of strings": lambda value: is_string(value) or is_list_of(is_string, value),
}


def check(name: str, value: Any, kind: str) -> Any:
    """Return `value` if it is of a kind of `_KINDS`, integers as Python's own; raise `ConfigError` otherwise."""
    if not _KINDS[kind](value):
        if "integer" in kind and isinstance(value, int) and not isinstance(value, bool):
            raise ConfigError(f"{name} is {show_json(value)}, beyond an integer of 64 bits")
        raise ConfigError(f"{name} is {show_json(value)}, expected {'an' if kind[0] in 'aio' else 'a'} {kind}")
    if "string" in kind and not all(map(is_text, _strings(value))):
        raise ConfigError(f"{name} holds {HALF_A_CHARACTER}")
    if kind == "integer":
        return int(value)
    return list(map(int, value)) if kind == "list of integers" else value


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return [value] if isinstance(value, str) else value


def refuse_value(name: str, value: Any, *allowed: Any) -> None:
    raise ConfigError(f"{name}={show_json(value)} is not supported, expected {' or '.join(map(repr, allowed))}")
