"""OpenAI's tool definitions, checked once for all: what a caller sent → plain dictionaries, or one line.

The prompt shows them, a grammar holds calls to them and calls in answers are read by them, all under the same limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.errors import PromptError
from pocketvlm.json_text import HALF_A_CHARACTER, is_text
from pocketvlm.ranges import show_json

MAX_TOOLS = 128
MAX_TOOLS_TEXT = 256 * 1024  # bytes of all definitions together, as JSON
MAX_NAME = 256  # characters of the name of a tool or a parameter
MAX_DEPTH = 64  # levels of a definition, and of the arguments of a call


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Check and copy OpenAI's tool definitions; None and an empty list both mean no tools.

    Raises:
        PromptError: the definitions are malformed or over a limit; the message names the first one at fault.
    """
    if tools is None:
        return None
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise PromptError(f"tools is {show_json(tools)}, expected a list of tool definitions")
    if len(tools) > MAX_TOOLS:
        raise PromptError(f"tools holds {len(tools)} definitions, at most {MAX_TOOLS} are allowed")
    checked = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in checked]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise PromptError(f"tools[{index}].function.name is {show_json(name)}, as that of another tool")
    size = len(json.dumps(checked, ensure_ascii=False).encode())
    if size > MAX_TOOLS_TEXT:
        raise PromptError(f"tools takes {size} bytes as JSON, at most {MAX_TOOLS_TEXT} are allowed")
    return checked or None


def _tool(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") != "function":
        raise PromptError(f'{where}: expected {{"type": "function", "function": {{...}}}}')
    check_name(function.get("name"), f"{where}.function.name")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise PromptError(f"{where}.function.parameters is {show_json(function['parameters'])}, expected a JSON schema")
    if not isinstance(function.get("strict"), bool | None):
        raise PromptError(f"{where}.function.strict is {show_json(function['strict'])}, expected true or false")
    checked: dict[str, Any] = plain_json(tool, where)
    return checked


def check_name(name: Any, what: str) -> None:
    """Raise `PromptError` for the name of a tool or a parameter that could not stand in `<function=NAME>`."""
    fits = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name == name.strip() and name.isprintable()
    if not fits or "<" in name or ">" in name:
        raise PromptError(
            f"{what} is {show_json(name)}, expected up to {MAX_NAME} printable characters without < and >"
        )


def plain_json(value: Any, where: str, depth: int = 0) -> Any:
    """Copy `value` as dict, list, str, int, float, bool and None; raise `PromptError` for anything else."""
    if depth > MAX_DEPTH:
        raise PromptError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float:
        if not -float("inf") < value < float("inf"):
            raise PromptError(f"{where} holds {value!r}, which is not JSON")
        return value
    if isinstance(value, str):
        return text(value, where)
    if isinstance(value, Mapping):
        return {text(key, f"a key of {where}"): plain_json(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, where, depth + 1) for item in value]
    raise PromptError(f"{where} holds a {type(value).__name__}, which is not JSON")


def text(value: Any, where: str, *, empty: bool = True) -> str:
    """Return `value` as a plain string that UTF-8 can carry; raise `PromptError` for anything else."""
    if not isinstance(value, str) or not (value or empty):
        raise PromptError(f"{where} is {show_json(value)}, expected {'a string' if empty else 'a non-empty string'}")
    if not is_text(value):
        raise PromptError(f"{where} holds {HALF_A_CHARACTER}")
    return str(value)
