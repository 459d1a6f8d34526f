"""OpenAI-style messages, checked: what the caller sent → what a chat template may see, and the media in between.

Takes messages (`{"role", "content", ...}`, content a string or a list of parts) and tools; gives plain dictionaries of
strings, numbers and lists, plus the pictures and videos in order. Nothing else reaches the template: no objects, and no
field that would be silently dropped. Every fault is a `PromptError` of one line that names the message.

Parts, each with its `type`: `{"text"}`, `{"image_url": {"url"}}`, `{"image": anything}`, `{"video_url": {"url"}}`,
`{"video": anything}`, with `fps` beside it where the video is given as frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from pocketvlm.errors import PromptError

MediaKind = Literal["image", "video"]
Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
MAX_DEPTH = 32  # of tool schemas and tool-call arguments

# Fields each role may carry. The ids of tool calls and the name of a tool are the protocol's own bookkeeping: this
# model's prompt has no place for them, and matches answers to calls by their order.
_FIELDS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "reasoning_content", "reasoning", "tool_calls"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
_PART_TYPES = ("text", "image_url", "image", "video_url", "video")  # each names the field it needs


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A picture or a video of the conversation, not yet loaded.

    Attributes:
        kind: "image" or "video".
        source: what the caller gave: a URL for `image_url` and `video_url`, anything for `image` and `video`.
        where: its place, for errors: `messages[1].content[0]`.
        fps: frames a second of a video given as frames.
    """

    kind: MediaKind
    source: Any
    where: str
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages (fresh plain dictionaries, media replaced by a marker part) and their media, in order."""

    messages: list[dict[str, Any]]
    media: tuple[MediaPart, ...]


def check_messages(messages: Any) -> Conversation:
    """Check and copy `messages`; raise `PromptError` with one line naming the first message at fault."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise PromptError(f"messages is {_show(messages)}, expected a list of messages")
    if not messages:
        raise PromptError("messages is empty, expected at least one user message")
    media: list[MediaPart] = []
    checked: list[dict[str, Any]] = []
    for index, message in _in_order_of_calls(messages):
        where = f"messages[{index}]"
        role = _check_fields(message, where)
        if role == "system" and index > 0:
            raise PromptError(f"{where}: a system message must be the first message")
        if role == "tool" and (index == 0 or checked[-1]["role"] not in ("assistant", "tool")):
            raise PromptError(f"{where}: a tool message must follow an assistant or a tool message")
        result: dict[str, Any] = {"role": role}
        if role == "assistant":
            result |= _assistant_fields(message, where)
        result["content"] = _content(message, role, where, media, optional=len(result) > 1)
        checked.append(result)
    return Conversation(messages=checked, media=tuple(media))


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Check and copy OpenAI tool definitions; None and an empty list both mean no tools."""
    if tools is None:
        return None
    if isinstance(tools, (str, bytes)) or not isinstance(tools, Sequence):
        raise PromptError(f"tools is {_show(tools)}, expected a list of tool definitions")
    checked = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function":
            raise PromptError(f'{where}: expected {{"type": "function", "function": {{...}}}}')
        _text(function.get("name"), f"{where}.function.name", empty=False)
        checked.append(plain_json(tool, where))
    return checked or None


def plain_json(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of `value` made of dict, list, str, int, float, bool and None; `PromptError` for anything else."""
    if depth > MAX_DEPTH:
        raise PromptError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, Mapping):
        return {_text(key, f"a key of {where}"): plain_json(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, where, depth + 1) for item in value]
    raise PromptError(f"{where} holds a {type(value).__name__}, which is not JSON")


def _in_order_of_calls(messages: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Messages with their places; tool messages behind an assistant's calls come in the order of these calls."""
    calls: dict[str, int] = {}
    run: list[tuple[int, int, Any]] = []  # the call that each tool message answers, its place, and the message
    for index, message in enumerate(messages):
        role, fields = (message.get("role"), message) if isinstance(message, Mapping) else (None, {})
        if role == "tool":
            call = fields.get("tool_call_id")
            if calls and isinstance(call, str) and call not in calls:
                raise PromptError(
                    f"messages[{index}]: tool_call_id is {_show(call)}, which no call before it has",
                    hint="Give the id of a call of the assistant message before it.",
                )
            run.append((calls.get(call, -1) if isinstance(call, str) else -1, index, message))
            continue
        yield from _answers(run)
        run, calls = [], _call_ids(fields) if role == "assistant" else {}
        yield index, message
    yield from _answers(run)


def _answers(run: list[tuple[int, int, Any]]) -> Iterator[tuple[int, Any]]:
    if all(call >= 0 for call, _, _ in run):
        run = sorted(run, key=lambda answer: answer[0])
    return ((index, message) for _, index, message in run)


def _call_ids(message: Message) -> dict[str, int]:
    """The place of each call of an assistant message by its id; empty unless each has an id of its own."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return {}
    ids = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
    found = {id: place for place, id in enumerate(ids) if isinstance(id, str)}
    return found if len(found) == len(ids) else {}


def _check_fields(message: Any, where: str) -> str:
    """The role of a message whose fields are all known for that role."""
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is {_show(message)}, expected an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"{where}: role is {_show(role)}, expected one of {', '.join(ROLES)}")
    # Clients echo answers back with every field of the protocol, unset ones as null: those ask for nothing.
    unknown = [key for key, value in message.items() if key not in _FIELDS[role] and value is not None]
    if unknown:
        raise PromptError(f"{where}: a {role} message has no field {_show(unknown[0])}")
    for key in ("tool_call_id", "name"):
        if message.get(key) is not None:
            _text(message[key], f"{where}.{key}")
    return role


def _assistant_fields(message: Message, where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key in ("reasoning_content", "reasoning"):
        if message.get(key) is not None:
            result.setdefault("reasoning_content", _text(message[key], f"{where}.{key}"))
    calls = message.get("tool_calls")
    if calls is None:
        return result
    if not isinstance(calls, (list, tuple)):
        raise PromptError(f"{where}.tool_calls is {_show(calls)}, expected a list")
    if calls:
        result["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return result


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise PromptError(f"{where}: expected an object with a function")
    name = _text(function.get("name"), f"{where}: the function's name", empty=False)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI's protocol carries the arguments as a string of JSON; the template wants them taken apart.
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise PromptError(f"{where}: arguments of {_show(name)} is not valid JSON") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise PromptError(f"{where}: arguments of {_show(name)} is {_show(arguments)}, expected a JSON object")
    return {"function": {"name": name, "arguments": plain_json(arguments, f"{where}: arguments of {_show(name)}")}}


def _content(message: Message, role: str, where: str, media: list[MediaPart], *, optional: bool) -> str | list[Any]:
    content = message.get("content")
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return _text(content, f"{where}.content")
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where}.content is {_show(content)}, expected a string or a list of parts")
    if not content:
        raise PromptError(f"{where}.content is an empty list, expected at least one part")
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        kind, value = _part(part, place)
        if kind == "text":
            parts.append({"type": "text", "text": _text(value, f"{place}.text")})
        elif role == "system":
            raise PromptError(f"{place}: a system message must be text only, not {kind}")
        else:
            media_kind: MediaKind = "video" if kind.startswith("video") else "image"
            media.append(MediaPart(kind=media_kind, source=value, where=place, fps=_fps(part, place)))
            parts.append({"type": media_kind})
    return parts


def _part(part: Any, where: str) -> tuple[str, Any]:
    """Type and value of one content part; for the URL types, the value is the URL."""
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is {_show(part)}, expected an object with a type")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _PART_TYPES:
        raise PromptError(f"{where}: part type is {_show(kind)}, expected one of {', '.join(_PART_TYPES)}")
    known = ("type", kind, "fps") if kind == "video" else ("type", kind)
    unknown = [key for key, value in part.items() if key not in known and value is not None]
    if unknown:
        raise PromptError(f"{where}: a part of type {kind} has no field {_show(unknown[0])}")
    value = part.get(kind)
    if value is None:
        raise PromptError(f"{where}: a part of type {kind} needs the field {kind!r}")
    if not kind.endswith("_url"):
        return kind, value
    if isinstance(value, Mapping):
        unknown = [key for key, item in value.items() if key not in ("url", "detail") and item is not None]
        if unknown:
            raise PromptError(f"{where}.{kind} has no field {_show(unknown[0])}")
        if value.get("detail") not in (None, "auto"):
            raise PromptError(
                f"{where}.{kind}: detail is {_show(value['detail'])}, expected 'auto'",
                hint="Choose the detail with max_slice_nums and downsample_mode.",
            )
        value = value.get("url")
    return kind, _text(value, f"{where}.{kind}.url", empty=False)


def _fps(part: Mapping[str, Any], where: str) -> float | None:
    fps = part.get("fps")
    is_number = isinstance(fps, Real) and not isinstance(fps, bool)
    if fps is not None and not is_number:
        raise PromptError(f"{where}.fps is {_show(fps)}, expected a number")
    return fps


def _text(value: Any, where: str, *, empty: bool = True) -> str:
    """`value` as a plain string that UTF-8 can carry."""
    if not isinstance(value, str) or not (value or empty):
        raise PromptError(f"{where} is {_show(value)}, expected {'a string' if empty else 'a non-empty string'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{where} holds half of a surrogate pair, which is no character") from None
    return str(value)


def _show(value: Any) -> str:
    """`value` for an error message: short, and never an unknown object's own idea of its representation."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    return f"of type {type(value).__name__}"
