r"""Marks in text (`<image>`, `<video>`) and lists of media → content parts, each medium at its mark.

The chat template sets parts a line apart. So a line break beside a mark is that one: `<image>\nWhat?` is the picture
and "What?", which is the prompt that inference makes of them.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pocketvlm.errors import PromptError
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.file_roots import is_file_url
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.sources import NamedBytes, describe, existing_file, is_path
from pocketvlm.ranges import show_json
from pocketvlm.remote_files import is_remote
from pocketvlm.training.data.conversations import Turn
from pocketvlm.training.data.reading import check_text

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")
_NAMES = {"image": "picture", "video": "video"}
_MARK = re.compile(r"\n?<(image|video)>\n?")
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".ogv", ".3gp", ".wmv")


def media_of(found: Mapping[str, Any]) -> dict[Kind, list[Any]]:
    """The media that the columns of a record name, in order, not yet looked for."""
    media: dict[Kind, list[Any]] = {kind: _listed(found.get(f"{kind}s", [])) for kind in KINDS}
    for name in _listed(found.get("files", [])):
        is_video = isinstance(name, str) and name.lower().endswith(_VIDEO_SUFFIXES)
        media["video" if is_video else "image"].append(name)
    return media


def place_media(turns: list[Turn], media: dict[Kind, list[Any]], *, need_marks: bool = False) -> None:
    """Put parts in the place of marks, and parts without a source on from `media`; what they hold is `locate`'s part.

    Media of a kind without any mark come in front of the first question, videos first, as ms-swift has it.

    Args:
        need_marks: refuse media without marks, as LLaMA-Factory does.

    Raises:
        PromptError: there are not as many marks as media.
    """
    for kind in KINDS:
        count = sum(_count(turn.get("content"), kind) for turn in turns)
        if not count and media[kind] and not need_marks:
            _in_front(turns, kind, len(media[kind]))
        elif count != len(media[kind]):
            raise PromptError(
                f"it has {_number(count, f'mark <{kind}>', f'marks <{kind}>')} and "
                f"{_number(len(media[kind]), _NAMES[kind], _NAMES[kind] + 's')}",
                hint=f"Write one mark for each, and name each in {kind}s.",
            )
    waiting = {kind: deque(media[kind]) for kind in KINDS}
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, str) and _MARK.search(content):
            turn["content"] = list(_cut(content, waiting))
        elif isinstance(content, list):
            turn["content"] = [
                {"type": empty, empty: waiting[empty].popleft()} if (empty := _empty_kind(part)) else part
                for part in content
            ]


def locate(source: Any, kind: Kind, folder: Path, what: str, *, inside: bool = False) -> str | bytes:
    """What a medium is named by → an absolute path of a file that is there, maybe with its pages, a URL, or bytes.

    Args:
        folder: what relative paths are relative to.
        what: what messages call it.
        inside: refuse what lies outside of `folder`.

    Raises:
        PromptError, MediaError: it is none of these.
    """
    if isinstance(source, Mapping):
        body, name = source.get("bytes"), source.get("path")
        if body is None and not (isinstance(name, str) and name):
            raise PromptError(f"{what} has neither bytes nor a path", hint="Write the file's content into it.")
        source = body if body is not None else name
    if isinstance(source, bytes):
        if not source:
            raise PromptError(f"{what} holds no bytes", hint="Check how it was written.")
        return NamedBytes(source, what)
    if not isinstance(source, str):
        hint = "Give the file of the video, not its frames." if kind == "video" and isinstance(source, list) else ""
        raise PromptError(f"{what} is {show_json(source)}, expected a path, a URL or bytes", hint=hint)
    check_text(source, f"the name of {what}")
    if is_url(source) or is_data_url(source):
        return source
    if is_remote(source):
        if inside:
            raise PromptError(
                f"{what}, {describe(source)}, lies outside of the folder", hint="Put it beside the others."
            )
        return source
    if is_file_url(source):
        raise PromptError(f"{what} is a file: URL", hint="Give the path alone, without file:// in front.")
    if not is_path(source):
        raise PromptError(f"{what} is bare base64", hint="Put data:image/png;base64, in front of it.")
    if not source:
        raise PromptError(f"{what} has an empty name", hint="Give the path of a file.")
    bare, pages = split_pages(folder / source)
    path = Path(str(bare))
    # As it is named: in the cache of a hub the files of a folder are links to where their contents lie.
    if inside and not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        raise PromptError(f"{what}, {describe(source)}, lies outside of the folder", hint="Put it beside the others.")
    found = str(existing_file(path, describe(str(path))).absolute())
    return found if pages is None else f"{found}#{pages}"


def count_marks(text: str) -> int:
    """How many marks a text holds."""
    return len(_MARK.findall(text))


def _count(content: Any, kind: Kind) -> int:
    if isinstance(content, str):
        return content.count(f"<{kind}>")
    return sum(_empty_kind(part) == kind for part in content) if isinstance(content, list) else 0


def _empty_kind(part: Any) -> Kind | None:
    """The kind of a part that names no medium of its own: `{"type": "image"}`, whose picture stands in a column."""
    for kind in KINDS:
        if (
            isinstance(part, Mapping)
            and part.get("type") == kind
            and not any(part.get(name) for name in (kind, f"{kind}_url", "url", "path"))
        ):
            return kind
    return None


def _in_front(turns: list[Turn], kind: Kind, count: int) -> None:
    turn = next((turn for turn in turns if turn["role"] == "user"), None)
    if turn is None:
        raise PromptError(f"it has a {_NAMES[kind]} and no question", hint="Add a message of the user.")
    content = turn.get("content")
    if isinstance(content, list):
        turn["content"] = [{"type": kind}] * count + content
    elif isinstance(content, str):
        turn["content"] = f"<{kind}>\n" * count + content


def _cut(text: str, waiting: Mapping[Kind, deque[Any]]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(_MARK.split(text)):
        if number % 2:
            kind: Kind = "image" if piece == "image" else "video"
            parts.append({"type": kind, kind: waiting[kind].popleft()})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _listed(value: Any) -> list[Any]:
    """A column of media holds one or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
