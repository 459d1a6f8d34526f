"""OpenAI-style messages, checked: what the caller sent → what a chat template may see, and the media in between.

Takes messages (`{"role", "content", ...}`, content a string or a list of parts); gives plain dictionaries of
strings, numbers and lists, plus the pictures and videos in order. Nothing else reaches the template: no objects, and no
field that would change the answer is dropped. Every fault is a `PromptError` of one line that names the message.

The published template takes a system message in the first place only, so all of them (`developer` is another name for
`system`) are joined into one there, in their order and a blank line apart.

Parts, each with its `type`: `{"text"}`, `{"image_url": {"url"}}`, `{"image": anything}`, `{"video_url": {"url"}}`,
`{"video": anything}`, with `fps` beside it where the video is given as frames, and `{"file": {"file_data",
"filename"}}`, OpenAI's way to send a document: base64, alone or as a data: URL. Media may have a `detail` (beside the
url, as in OpenAI's protocol, or beside the medium): "low" means no slices, "high" and "auto" what the request says, or
the model where it says nothing; or a `max_slice_nums` beside the medium, which goes before that of the request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from pocketvlm.config_ranges import IMAGE
from pocketvlm.errors import PromptError
from pocketvlm.processing.media.fetch import is_data_url
from pocketvlm.ranges import as_integer, show_json
from pocketvlm.tools.definitions import plain_json, text

MediaKind = Literal["image", "video"]
Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")

# Fields each role may carry, beside those that say nothing to the model: the names and ids that clients give, ids of
# tool calls (answers are matched to calls by them), and marks for other services. The prompt has no place for them.
_FIELDS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "reasoning_content", "reasoning", "tool_calls"},
    "tool": {"role", "content", "tool_call_id"},
}
_LABELS = {"name": str, "id": str, "annotations": list | tuple, "cache_control": Mapping}
_PART_TYPES = ("text", "image_url", "image", "file", "video_url", "video")  # each names the field it needs
_DETAILS = ("low", "high", "auto")


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A picture or a video of the conversation, not yet loaded.

    Attributes:
        kind: "image" or "video".
        source: what the caller gave: a URL for `image_url` and `video_url`, anything for `image` and `video`.
        where: its place, for errors: `messages[1].content[0]`.
        fps: frames a second of a video given as frames.
        max_slice_nums: most slices of the picture, or of each frame; the request's when None.
    """

    kind: MediaKind
    source: Any
    where: str
    fps: float | None = None
    max_slice_nums: int | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages (fresh plain dictionaries, media replaced by a marker part) and their media, in order."""

    messages: list[dict[str, Any]]
    media: tuple[MediaPart, ...]


def check_messages(messages: Any) -> Conversation:
    """Check and copy `messages`; raise `PromptError` with one line naming the first message at fault."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise PromptError(f"messages is {show_json(messages)}, expected a list of messages")
    if not messages:
        raise PromptError("messages is empty, expected at least one user message")
    media: list[MediaPart] = []
    checked: list[dict[str, Any]] = []
    instructions: list[str | list[Any]] = []
    others = list[tuple[int, Any]]()
    for index, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") in ("system", "developer"):
            where = f"messages[{index}]"
            _check_fields(message, where)
            instructions.append(_content(message, "system", where, media, optional=False))
        else:
            others.append((index, message))
    for index, message in _in_order_of_calls(others):
        where = f"messages[{index}]"
        role = _check_fields(message, where)
        if role == "tool" and (not checked or checked[-1]["role"] not in ("assistant", "tool")):
            raise PromptError(f"{where}: a tool message must follow an assistant or a tool message")
        result: dict[str, Any] = {"role": role}
        if role == "assistant":
            result |= _assistant_fields(message, where)
        result["content"] = _content(message, role, where, media, optional=len(result) > 1)
        checked.append(result)
    if instructions:
        checked.insert(0, {"role": "system", "content": _joined(instructions)})
    return Conversation(messages=checked, media=tuple(media))


def _joined(instructions: list[str | list[Any]]) -> str | list[Any]:
    """Return the contents of system messages as one. A single one stays as it is; templates set parts a line apart."""
    if len(instructions) == 1:
        return instructions[0]
    texts = (each if isinstance(each, str) else "\n".join(part["text"] for part in each) for each in instructions)
    return "\n\n".join(stripped for text in texts if (stripped := text.strip()))


def _in_order_of_calls(messages: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield messages with their places; tool messages behind an assistant's calls come in the order of these calls."""
    calls: dict[str, int] = {}
    run: list[tuple[int, int, Any]] = []  # the call that each tool message answers, its place, and the message
    for index, message in messages:
        role, fields = (message.get("role"), message) if isinstance(message, Mapping) else (None, {})
        if role == "tool":
            call = fields.get("tool_call_id")
            if calls and isinstance(call, str) and call not in calls:
                raise PromptError(
                    f"messages[{index}]: tool_call_id is {show_json(call)}, which no call before it has",
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
    """Return the place of each call of an assistant message by its id; none unless each has an id of its own."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return {}
    ids = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
    found = {id: place for place, id in enumerate(ids) if isinstance(id, str)}
    return found if len(found) == len(ids) else {}


def _check_fields(message: Any, where: str) -> str:
    """Return the role of a message, whose fields must all be known for that role."""
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is {show_json(message)}, expected an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"{where}: role is {show_json(role)}, expected one of {', '.join(ROLES)}")
    role = "system" if role == "developer" else role
    # Clients echo answers back with every field of the protocol, unset ones as null or empty: those ask for nothing.
    unknown = [
        key
        for key, value in message.items()
        if key not in _FIELDS[role] and key not in _LABELS and not _is_unset(value)
    ]
    if unknown:
        raise PromptError(f"{where}: a message of role {role} has no field {show_json(unknown[0])}")
    _check_labels(message, where)
    if role == "tool" and message.get("tool_call_id") is not None:
        text(message["tool_call_id"], f"{where}.tool_call_id")
    return role


def _is_unset(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _check_labels(labelled: Mapping[str, Any], where: str) -> None:
    """Refuse nonsense in the place of labels, although they have no effect."""
    for key, kind in _LABELS.items():
        value = labelled.get(key)
        if value is not None and not isinstance(value, kind):
            raise PromptError(f"{where}.{key} is {show_json(value)}, which is no {key}")


def _assistant_fields(message: Message, where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key in ("reasoning_content", "reasoning"):
        if message.get(key) is not None:
            result.setdefault("reasoning_content", text(message[key], f"{where}.{key}"))
    calls = message.get("tool_calls")
    if calls is None:
        return result
    if not isinstance(calls, (list, tuple)):
        raise PromptError(f"{where}.tool_calls is {show_json(calls)}, expected a list")
    if calls:
        result["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return result


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise PromptError(f"{where}: expected an object with a function")
    name = text(function.get("name"), f"{where}: the function's name", empty=False)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI's protocol carries the arguments as a string of JSON; the template wants them taken apart.
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise PromptError(f"{where}: arguments of {show_json(name)} is not valid JSON") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise PromptError(f"{where}: arguments of {show_json(name)} is {show_json(arguments)}, expected a JSON object")
    return {"function": {"name": name, "arguments": plain_json(arguments, f"{where}: arguments of {show_json(name)}")}}


def _content(message: Message, role: str, where: str, media: list[MediaPart], *, optional: bool) -> str | list[Any]:
    content = message.get("content")
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return text(content, f"{where}.content")
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where}.content is {show_json(content)}, expected a string or a list of parts")
    if not content:
        raise PromptError(f"{where}.content is an empty list, expected at least one part")
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        kind, value = _part(part, place)
        if kind == "text":
            parts.append({"type": "text", "text": text(value, f"{place}.text")})
        elif role == "system":
            raise PromptError(f"{place}: a system message must be text only, not {kind}")
        else:
            media_kind: MediaKind = "video" if kind.startswith("video") else "image"
            media.append(MediaPart(media_kind, value, place, _fps(part, place), _slices(part, kind, place)))
            parts.append({"type": media_kind})
    return parts


def _part(part: Any, where: str) -> tuple[str, Any]:
    """Return type and value of one content part; for the URL types, the value is the URL."""
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is {show_json(part)}, expected an object with a type")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _PART_TYPES:
        raise PromptError(f"{where}: part type is {show_json(kind)}, expected one of {', '.join(_PART_TYPES)}")
    known = {"type", kind, *_LABELS}
    if kind != "text":
        known |= {"detail", "max_slice_nums"} | ({"fps"} if kind == "video" else set())
    unknown = [key for key, value in part.items() if key not in known and not _is_unset(value)]
    if unknown:
        raise PromptError(f"{where}: a part of type {kind} has no field {show_json(unknown[0])}")
    _check_labels(part, where)
    value = part.get(kind)
    if value is None:
        raise PromptError(f"{where}: a part of type {kind} needs the field {kind!r}")
    if kind == "file":
        return kind, _file(value, f"{where}.file")
    if not kind.endswith("_url"):
        return kind, value
    if isinstance(value, Mapping):
        unknown = [key for key, item in value.items() if key not in ("url", "detail") and not _is_unset(item)]
        if unknown:
            raise PromptError(f"{where}.{kind} has no field {show_json(unknown[0])}")
        value = value.get("url")
    return kind, text(value, f"{where}.{kind}.url", empty=False)


def _file(file: Any, where: str) -> str:
    """The data: URL of a file that stands in the message."""
    if not isinstance(file, Mapping):
        raise PromptError(f"{where} is {show_json(file)}, expected an object with file_data")
    for key, value in file.items():
        if key not in ("file_data", "filename") and not _is_unset(value):
            hint = "Nothing is stored here: give file_data." if key == "file_id" else ""
            raise PromptError(f"{where} has no field {show_json(key)}", hint=hint)
    if file.get("filename") is not None:
        text(file["filename"], f"{where}.filename")
    data = text(file.get("file_data"), f"{where}.file_data", empty=False)
    return data if is_data_url(data) else f"data:;base64,{data}"


def _fps(part: Mapping[str, Any], where: str) -> float | None:
    fps = part.get("fps")
    is_number = isinstance(fps, Real) and not isinstance(fps, bool)
    if _is_unset(fps):
        return None
    if not is_number:
        raise PromptError(f"{where}.fps is {show_json(fps)}, expected a number")
    return fps


def _slices(part: Mapping[str, Any], kind: str, where: str) -> int | None:
    """Most slices of one medium by its `max_slice_nums` or its `detail`; None leaves it to the request."""
    slices = None if _is_unset(part.get("max_slice_nums")) else as_integer(part["max_slice_nums"])
    most = int(IMAGE["max_slice_nums"].max)  # as of those of the request
    if slices is not None and (isinstance(slices, bool) or not isinstance(slices, int) or not 1 <= slices <= most):
        raise PromptError(
            f"{where}.max_slice_nums is {show_json(slices)}, expected a positive integer of at most {most}"
        )
    inner = part[kind].get("detail") if kind.endswith("_url") and isinstance(part[kind], Mapping) else None
    detail = part.get("detail") if _is_unset(inner) else inner
    if not _is_unset(detail) and detail not in _DETAILS:
        raise PromptError(f"{where}: detail is {show_json(detail)}, expected one of {', '.join(_DETAILS)}")
    if detail != "low":
        return slices
    if slices not in (None, 1):
        raise PromptError(
            f"{where}: detail 'low' means no slices, max_slice_nums is {slices}", hint="Give one of them."
        )
    return 1
