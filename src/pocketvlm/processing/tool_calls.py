"""Tool calls in the text of an answer: text and tool definitions → the text beside the calls, and the calls.

The model writes a call as its chat template shows it:

    <tool_call>
    <function=NAME>
    <parameter=P>
    VALUE
    </parameter>
    </function>
    </tool_call>

A value is raw text of one or more lines; the tool's schema says what it stands for. What is not a whole call (cut off,
or of another form) stays text. Every character is looked at a fixed number of times, whatever the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_MAX_NAME = 256
_SPACE = " \t\r\n"

# The chat template prints single values as Python does.
_WORDS: Mapping[str, bool | None] = {"True": True, "False": False, "None": None}
_ANYTHING = frozenset(("object", "array", "string"))  # what a value may be where its schema does not say


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of the tool `name`; `arguments` are JSON values by parameter."""

    name: str
    arguments: dict[str, Any]


def parse_tool_calls(text: str, tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[str, tuple[ToolCall, ...]]:
    """Set the calls in `text` apart.

    Args:
        text: what the model said, reasoning already taken off.
        tools: OpenAI tool definitions; a parameter without a schema stays a string.

    Returns:
        the text beside the calls, trimmed, its parts a blank line apart (`text` itself where there is no call); and the
        calls in order. A value that is not of its schema's type stays the string that the model wrote.
    """
    before, *segments = text.split(_OPEN)
    parts, calls = [[before]], list[ToolCall]()
    for segment in segments:
        found = _read_call(segment)
        if found is None:
            parts[-1] += (_OPEN, segment)
            continue
        name, values, end = found
        properties = _properties(tools or (), name)
        calls.append(ToolCall(name, {key: _typed(value, properties.get(key)) for key, value in values.items()}))
        parts.append([segment[end:]])
    if not calls:
        return text, ()
    beside = ("".join(part).strip() for part in parts)
    return "\n\n".join(filter(None, beside)), tuple(calls)


def _read_call(text: str) -> tuple[str, dict[str, str], int] | None:
    """Name, raw values and end of the call whose opening tag stands before `text`; None if it is no whole call."""
    opened = _read_name(text, _skip_space(text, 0), _FUNCTION)
    if opened is None:
        return None
    name, at = opened
    values: dict[str, str] = {}
    while not text.startswith(_END_FUNCTION, at := _skip_space(text, at)):
        opened = _read_name(text, at, _PARAMETER)
        if opened is None or opened[0] in values:
            return None
        key, at = opened
        end = _value_end(text, at)
        if end < 0:
            return None
        values[key] = text[at:end].removeprefix("\n").removesuffix("\n")
        at = end + len(_END_PARAMETER)
    at = _skip_space(text, at + len(_END_FUNCTION))
    return (name, values, at + len(_CLOSE)) if text.startswith(_CLOSE, at) else None


def _read_name(text: str, at: int, tag: str) -> tuple[str, int] | None:
    """The name in `<function=NAME>` or `<parameter=NAME>` at `at`, and where the tag ends."""
    if not text.startswith(tag, at):
        return None
    start = at + len(tag)
    end = text.find(">", start, start + _MAX_NAME + 1)
    name = text[start:end].strip() if end > 0 else ""
    return (name, end + 1) if name.isprintable() and name and "<" not in name else None


def _value_end(text: str, at: int) -> int:
    """Where the closing tag of a value stands: a value may hold such a tag, but not with another tag behind it."""
    while (at := text.find(_END_PARAMETER, at)) >= 0:
        behind = _skip_space(text, at + len(_END_PARAMETER))
        if text.startswith((_PARAMETER, _END_FUNCTION), behind):
            return at
        at = behind
    return -1


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _properties(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Schemas of the parameters of a tool; none where there is no such tool."""
    for tool in tools:
        function = tool["function"]
        if function["name"] == name:
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            return properties if isinstance(properties, Mapping) else {}
    return {}


def _typed(text: str, schema: Any) -> Any:
    """The value that `text` stands for under its schema."""
    kinds = _kinds(schema) if schema is not None else frozenset(("string",))
    if kinds == {"string"}:
        return text
    try:
        word = text.strip()
        value: Any = _WORDS[word] if word in _WORDS else json.loads(word, parse_constant=_refuse)
        # Numbers beyond a float and half surrogate pairs are read, but could not be written again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text
    kind = _kind(value)
    if kind == "string":
        return text  # strings are written without quotes, so these quotes are part of it
    if kind in kinds or (kind == "integer" and "number" in kinds):
        return value
    return int(value) if kind == "number" and "integer" in kinds and value.is_integer() else text


def _kinds(schema: Any) -> frozenset[str]:
    """JSON types that a schema allows."""
    if not isinstance(schema, Mapping):
        return _ANYTHING
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset((named,))
    if isinstance(named, list | tuple):
        return frozenset(kind for kind in named if isinstance(kind, str))
    for word in ("anyOf", "oneOf"):
        branches = schema.get(word)
        if isinstance(branches, list | tuple):
            return frozenset[str]().union(*map(_kinds, branches))
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return frozenset(map(_kind, values)) if isinstance(values, list | tuple) else _ANYTHING


def _kind(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (Mapping, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "array")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
