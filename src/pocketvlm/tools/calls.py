"""Tool calls in the text of an answer: text and tool definitions → the text beside the calls, and the calls.

The model writes a call as its chat template shows it:

    <tool_call>
    <function=NAME>
    <parameter=P>
    VALUE
    </parameter>
    </function>
    </tool_call>

A value is raw text of one or more lines; `tools/schemas` says which types it may have. What is not a whole call (cut
off, or of another form) stays text. Every character is looked at a fixed number of times, whatever the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketvlm.json_text import read_json
from pocketvlm.tools.definitions import MAX_NAME
from pocketvlm.tools.schemas import ToolSchema, type_of

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_SPACE = " \t\r\n"

# The chat template prints single values as Python does.
_WORDS: Mapping[str, bool | None] = {"True": True, "False": False, "None": None}
_STRING = frozenset(("string",))


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
    functions = {tool["function"]["name"]: tool["function"] for tool in reversed(tools or ())}
    schemas: dict[str, ToolSchema] = {}
    before, *segments = text.split(_OPEN)
    parts, calls = [[before]], list[ToolCall]()
    for segment in segments:
        found = _read_call(segment)
        if found is None:
            parts[-1] += (_OPEN, segment)
            continue
        name, values, end = found
        if name not in schemas:
            schemas[name] = ToolSchema(functions.get(name, {}).get("parameters"))
        types = schemas[name].parameters
        calls.append(ToolCall(name, {key: _typed(value, types.get(key, _STRING)) for key, value in values.items()}))
        parts.append([segment[end:]])
    if not calls:
        return text, ()
    beside = ("".join(part).strip() for part in parts)
    return "\n\n".join(filter(None, beside)), tuple(calls)


def _read_call(text: str) -> tuple[str, dict[str, str], int] | None:
    """Return name, raw values and end of the call whose opening tag stands before `text`; None without a whole call."""
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
    """Return the name in `<function=NAME>` or `<parameter=NAME>` at `at`, and where the tag ends."""
    if not text.startswith(tag, at):
        return None
    start = at + len(tag)
    end = text.find(">", start, start + MAX_NAME + 1)
    name = text[start:end].strip() if end > 0 else ""
    return (name, end + 1) if name.isprintable() and name and "<" not in name else None


def _value_end(text: str, at: int) -> int:
    """Find the closing tag of a value, -1 without one: a value may hold one, but not with another tag behind it."""
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


def _typed(text: str, kinds: frozenset[str]) -> Any:
    """Return the value of one of `kinds` that `text` stands for; else `text` itself."""
    if kinds == {"string"}:
        return text
    try:
        word = text.strip()
        value: Any = _WORDS[word] if word in _WORDS else read_json(word)
        # Numbers beyond a float and half surrogate pairs are read, but could not be written again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text
    kind = type_of(value)
    # Strings are written without quotes, so quotes are part of one.
    if kind == "string" or kind not in kinds:
        return text
    return int(value) if isinstance(value, float) and "number" not in kinds else value
