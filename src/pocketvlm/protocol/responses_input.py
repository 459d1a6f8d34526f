"""The `input` of OpenAI's Responses → messages, as chat completions have them.

An item is a message, a function call, its output, or reasoning; what a response had as `output` may be sent back as it
came. Items of the assistant that follow each other are one message: its reasoning, its text and its calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketvlm.errors import PromptError
from pocketvlm.protocol.fields import not_null
from pocketvlm.ranges import show_json
from pocketvlm.tools.definitions import text

# Fields of each item. Those of `_LABELS` say nothing to the model.
_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("summary", "content"),
}
_LABELS = {"id": str, "status": str, "phase": str, "name": str, "type": str, "encrypted_content": str}
_PARTS = {
    "input_text": ("text",),
    "output_text": ("text",),
    "text": ("text",),
    "refusal": ("refusal",),
    "input_image": ("image_url", "detail"),
    "input_file": ("file_data", "file_url", "filename", "detail"),
}
_LABELS_OF_PARTS = ("type", "annotations", "logprobs", "prompt_cache_breakpoint")
_INSTEAD = {
    "item_reference": "Nothing is stored here: send the item itself.",
    "file_id": "Nothing is stored here: give image_url or file_url (https: or data:), or file_data.",
}


def read_input(given: Any, instructions: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages, and what the body calls each of them.

    Raises:
        PromptError: an item that is of no kind that is known, or lacks something.
    """
    messages, places = list[dict[str, Any]](), list[str]()
    if instructions is not None:
        messages.append({"role": "system", "content": text(instructions, "instructions")})
        places.append("instructions")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": text(given, "input")}], [*places, "input"]
    if not isinstance(given, list | tuple):
        raise PromptError(f"input is {show_json(given)}, expected a text or a list of items")
    if not given:
        raise PromptError("input is empty, expected at least one item")
    turn: dict[str, Any] | None = None  # the message of the assistant that items are added to
    for index, item in enumerate(given):
        where = f"input[{index}]"
        kind, fields = _item(item, where)
        if kind == "function_call_output" or (kind == "message" and fields.get("role") != "assistant"):
            turn = None
            messages.append(_output(fields, where) if kind != "message" else _message(fields, where))
            places.append(where)
            continue
        # Behind a text comes a call; another text or another thought begins a message of its own.
        if (
            turn is None
            or (kind == "message" and "content" in turn and "tool_calls" not in turn)
            or (kind == "reasoning" and turn.keys() != {"role"} and turn.keys() != {"role", "reasoning_content"})
        ):
            turn = {"role": "assistant"}
            messages.append(turn)
            places.append(where)
        if kind == "message":
            turn["content"] = turn.get("content", "") + _plain(fields.get("content"), where)
        elif kind == "function_call":
            turn.setdefault("tool_calls", []).append(_call(fields, where))
        else:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + _thought(fields, where)
    for message in messages:
        if message["role"] == "assistant" and not message.get("tool_calls"):
            message.setdefault("content", "")  # of reasoning alone
    return messages, places


def _item(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, Mapping):
        raise PromptError(f"{where} is {show_json(item)}, expected an object")
    fields = not_null(where, item)
    kind = fields.get("type", "message")
    if not isinstance(kind, str) or kind not in _FIELDS:
        hint = _INSTEAD.get(kind, "") if isinstance(kind, str) else ""
        raise PromptError(f"{where}: the type is {show_json(kind)}, expected one of {', '.join(_FIELDS)}", hint=hint)
    for name, value in fields.items():
        if name in _LABELS:
            text(value, f"{where}.{name}")
        elif name not in _FIELDS[kind]:
            raise PromptError(f"{where}: an item of type {kind} has no field {show_json(name)}")
    return kind, fields


def _message(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = fields.get("role")
    if role not in ("user", "system", "developer"):
        roles = "user, assistant, system, developer"
        raise PromptError(f"{where}.role is {show_json(role)}, expected one of {roles}")
    return {"role": role, "content": _content(fields.get("content"), f"{where}.content")}


def _output(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    id = text(fields.get("call_id"), f"{where}.call_id", empty=False)
    return {"role": "tool", "tool_call_id": id, "content": _content(fields.get("output"), f"{where}.output")}


def _call(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    id = text(fields.get("call_id"), f"{where}.call_id", empty=False)
    function = {
        "name": text(fields.get("name"), f"{where}.name", empty=False),
        "arguments": text(fields.get("arguments"), f"{where}.arguments"),
    }
    return {"id": id, "type": "function", "function": function}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return text(content, where)
    if not isinstance(content, list | tuple) or not content:
        raise PromptError(f"{where} is {show_json(content)}, expected a text or a list of parts")
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, Any]:
    fields = not_null(where, part) if isinstance(part, Mapping) else {}
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _PARTS:
        hint = _INSTEAD.get(kind, "") if isinstance(kind, str) else ""
        raise PromptError(f"{where}: the type is {show_json(kind)}, expected one of {', '.join(_PARTS)}", hint=hint)
    for name in fields:
        if name not in (*_PARTS[kind], *_LABELS_OF_PARTS):
            raise PromptError(
                f"{where}: a part of type {kind} has no field {show_json(name)}", hint=_INSTEAD.get(name, "")
            )
    if kind == "input_file":
        return _file(fields, where)
    if kind != "input_image":
        return {"type": "text", "text": text(fields.get(_PARTS[kind][0]), f"{where}.{_PARTS[kind][0]}")}
    url = text(fields.get("image_url"), f"{where}.image_url", empty=False)
    return {"type": "image_url", "image_url": {"url": url, "detail": fields.get("detail")}}


def _file(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A document by its address, or as base64."""
    if ("file_url" in fields) == ("file_data" in fields):
        raise PromptError(f"{where}: a part of type input_file needs file_data or file_url, and one of them alone")
    detail = {"detail": fields.get("detail")}
    if "file_url" in fields:
        url = text(fields["file_url"], f"{where}.file_url", empty=False)
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    return {"type": "file", "file": {name: fields.get(name) for name in ("file_data", "filename")}, **detail}


def _plain(content: Any, where: str) -> str:
    """The text of the assistant's own message."""
    found = _content(content, f"{where}.content") if content != [] else ""
    if isinstance(found, str):
        return found
    for index, part in enumerate(found):
        if part["type"] != "text":
            raise PromptError(f"{where}.content[{index}]: a message of the assistant must be text only")
    return "".join(part["text"] for part in found)


def _thought(fields: Mapping[str, Any], where: str) -> str:
    """The text of reasoning, or where it is not there, its summary."""
    for name in ("content", "summary"):
        parts = fields.get(name, [])
        if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
            raise PromptError(f"{where}.{name} is {show_json(parts)}, expected a list of parts")
        if parts:
            return "\n".join(text(part.get("text"), f"{where}.{name}[{i}].text") for i, part in enumerate(parts))
    return ""
