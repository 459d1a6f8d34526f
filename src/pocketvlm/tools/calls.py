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
        the text beside the calls, without the white space around them, its parts a blank line apart (`text` itself
        where there is no call); and the calls in order. A value that is not of its schema's type stays the string
        that the model wrote.
    """
    found = ToolCallSplitter(tools).add(text, is_last=True)
    beside = "".join(part for part in found if isinstance(part, str))
    return beside, tuple(part for part in found if isinstance(part, ToolCall))


class ToolCallSplitter:
    """Text that grows → the text beside its calls, and its calls, each as soon as it is certain.

    What may turn out to be a call is held back until the call is whole, or can be none.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self._functions = {tool["function"]["name"]: tool["function"] for tool in reversed(tools or ())}
        self._schemas: dict[str, ToolSchema] = {}
        self._held = ""  # behind the last opening tag, if `_is_open`; else what may become one
        self._is_open = False
        self._searched = 0  # so much of `_held` has neither tag
        self._space = ""  # white space that stands beside a call, or within the text
        self._has_text = self._is_behind_call = False

    def add(self, new: str, *, is_last: bool) -> list[str | ToolCall]:
        """Take more text; returns what has become certain, in order."""
        self._held += new
        found: list[str | ToolCall] = []
        while self._is_open or _OPEN in self._held:
            if not self._is_open:
                before, _, self._held = self._held.partition(_OPEN)
                found.append(self._beside(before))
                self._is_open, self._searched = True, 0
            elif (call := self._call()) is not None:
                found.append(call)
            elif (following := self._held.find(_OPEN)) >= 0 or is_last:
                # Not a whole call, so it is text.
                end = following if following >= 0 else len(self._held)
                found.append(self._beside(_OPEN + self._held[:end]))
                self._held, self._searched = self._held[end + len(_OPEN) :], 0
                self._is_open = following >= 0
            else:
                self._searched = max(0, len(self._held) - len(_CLOSE) + 1)
                return list(filter(None, found))
        certain = len(self._held) - (0 if is_last else overlap(self._held, _OPEN))
        found.append(self._beside(self._held[:certain]))
        self._held = self._held[certain:]
        if is_last and not self._is_behind_call:
            found.append(self._space)
        return list(filter(None, found))

    def _call(self) -> ToolCall | None:
        """Take the call that `_held` begins with, if it is whole."""
        if self._held.find(_CLOSE, self._searched) < 0:
            return None
        read = _read_call(self._held.partition(_OPEN)[0])
        if read is None:
            return None
        name, values, end = read
        self._held, self._is_open = self._held[end:], False
        self._space, self._is_behind_call = "", True
        if name not in self._schemas:
            self._schemas[name] = ToolSchema(self._functions.get(name, {}).get("parameters"))
        types = self._schemas[name].parameters
        return ToolCall(name, {key: _typed(value, types.get(key, _STRING)) for key, value in values.items()})

    def _beside(self, text: str) -> str:
        """Text that is certain, but for white space at its end."""
        text = self._space + text
        if self._is_behind_call:
            text = text.lstrip()
        certain = text.rstrip()
        self._space = text[len(certain) :]
        if certain and self._is_behind_call:
            self._is_behind_call = False
            certain = "\n\n" + certain if self._has_text else certain
        self._has_text |= bool(certain)
        return certain


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


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


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
