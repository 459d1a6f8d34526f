"""What a user calls a schema → a JSON schema: a packaged name, a file, `module:Class` of Pydantic, or a short form."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pocketvlm.errors import ConfigError

_FOLDER = resources.files("pocketvlm.documents") / "schemas"
NAMES = ("business_card", "form", "invoice", "receipt", "table")
_LONGEST = 200  # characters of a text of the short form: small models do not always find its end
_TYPES: dict[str, dict[str, Any]] = {
    "string": {"type": "string", "maxLength": _LONGEST},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "maxLength": 40},  # as printed: the model copies, it does not convert
}
_HINT = f"Give {', '.join(NAMES)}, a JSON schema file, module:Class, or 'total: number, shop: string'."


def schema_of(given: Any) -> dict[str, Any]:
    """Read what `read_schema` does; or take a JSON schema as a dict, or a class of Pydantic.

    Raises:
        ConfigError: it is none of these, or no schema of objects.
    """
    if isinstance(given, str):
        return read_schema(given)
    if callable(made := getattr(given, "model_json_schema", None)):
        given = made()
    if not isinstance(given, dict):
        raise ConfigError(f"the schema is of type {type(given).__name__}", hint="Give a dict, a class or text.")
    return _checked(given, "the schema")


def read_schema(text: str) -> dict[str, Any]:
    """Read a schema, whose answers are objects.

    Raises:
        ConfigError: it is none of the forms, or no schema of objects.
    """
    if text in NAMES:
        schema = json.loads((_FOLDER / f"{text}.json").read_text(encoding="utf-8"))
    elif text.endswith(".json") or _is_file(text):
        schema = _of_file(Path(text))
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) and text.rpartition(":")[2] not in _TYPES:
        schema = _of_class(text)
    else:
        schema = _of_words(text)
    return _checked(schema, repr(text)[:80])


def local_reference(reference: Any, whole: Mapping[str, Any]) -> Any:
    """What a reference within a schema leads to (`#/$defs/Shop`, or `#`); None where that is nothing."""
    if not isinstance(reference, str) or not re.match("#(/|$)", reference):
        return None
    found: Any = whole
    for key in unquote(reference).split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdecimal() and int(name[:9]) < len(found):
            found = found[int(name[:9])]
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def meanings(part: Any, whole: Mapping[str, Any], seen: set[int]) -> Iterator[Mapping[str, Any]]:
    """A schema, and those that it may stand for: references within `whole`, and alternatives; each once, as a schema
    may name itself.

    Args:
        seen: the ids of those that are left out.
    """
    if not isinstance(part, Mapping) or id(part) in seen:
        return
    seen.add(id(part))
    yield part
    yield from meanings(local_reference(part.get("$ref"), whole), whole, seen)
    for way in ("anyOf", "oneOf", "allOf"):
        for one in members(part, way):
            yield from meanings(one, whole, seen)


def members(part: Mapping[str, Any], way: str) -> list[Any]:
    """The alternatives of `anyOf` and the like; none where there is no list of them."""
    found = part.get(way)
    return found if isinstance(found, list) else []


def _checked(schema: Any, name: str) -> dict[str, Any]:
    if isinstance(schema, dict) and not schema.get("properties"):
        # As Pydantic writes a class that holds itself: the top of the schema is in its definitions.
        found = local_reference(schema.get("$ref"), schema)
        if isinstance(found, dict):
            schema = {**{key: value for key, value in schema.items() if key != "$ref"}, **found}
    if not isinstance(schema, dict) or schema.get("type") != "object" or not schema.get("properties"):
        raise ConfigError(f"{name} is no schema of an object with properties", hint=_HINT)
    return schema


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a short form may be longer than any name
        return False


def _of_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the schema {path} cannot be read ({error.strerror})", hint=_HINT) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON schema: {error}", hint=_HINT) from None


def _of_class(text: str) -> Any:
    module, _, name = text.partition(":")
    sys.path.insert(0, "")  # a module beside the user, as with `python -m`
    try:
        return getattr(importlib.import_module(module), name).model_json_schema()
    except Exception as error:  # whatever the user's module does
        raise ConfigError(f"{text} is no Pydantic class: {error}", hint=_HINT) from None
    finally:
        sys.path.remove("")


def _of_words(text: str) -> dict[str, Any]:
    properties = {}
    for piece in text.split(","):
        name, colon, kind = (part.strip() for part in piece.partition(":"))
        if not name or not colon or kind not in _TYPES or name in properties:
            raise ConfigError(f"{piece.strip()!r:.80} is no field of a schema", hint=_HINT)
        properties[name] = _TYPES[kind]
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
