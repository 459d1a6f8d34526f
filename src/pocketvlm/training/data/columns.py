"""The columns that data may have: names of many programs → the few names that are used here.

`messages`, or `prompt` with `input`, `history` and `response`, say the conversation; `chosen` and `rejected` the
answers of preference data; `images`, `videos` and `files` its media. A column that says nothing here is left out, but
never one that looks like a known one misspelt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pocketvlm.errors import PromptError
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.ranges import show_json

# `text` is a caption, the answer to no question, only where nothing else answers; places where media lie are media only
# where nothing else holds them.
_NAMES = {
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "prompt": ("instruction", "query", "question", "prompt", "problem"),
    "input": ("input",),
    "response": ("output", "response", "answer", "completion"),
    "caption": ("text", "caption"),
    "history": ("history",),
    "chosen": ("chosen",),
    "rejected": ("rejected", "rejected_response", "rejected_messages"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "image_places": ("image_path", "image_paths", "image_url", "image_urls", "img", "img_path"),
    "video_places": ("video_path", "video_paths", "video_url", "video_urls"),
    "files": ("file_name", "file_names", "image_file_name", "image_file_names", "video_file_name", "video_file_names"),
    "tools": ("tools",),
}
_OURS = {name: ours for ours, names in _NAMES.items() for name in names}
_SAYS_SOMETHING = {name for name, ours in _OURS.items() if ours not in ("system", "tools", "history", "input")}
# Columns that change what is learnt, in ways that nothing here honours: they may be there, and must say nothing.
_REFUSED = {
    "audios": "the model hears nothing",
    "audio": "the model hears nothing",
    "objects": "boxes for <bbox> marks are not filled in; write them into the text",
    "kto_tag": "KTO is not a method here; give chosen and rejected answers",
}
# Columns that a description has to name where they are there: leaving them out would change what is learnt.
_TO_BE_NAMED = ("history", "system", "images", "videos", "tools", "chosen", "rejected")
_KNOWN = (*_OURS, *PICTURE_OPTIONS, *_REFUSED)
_PLACES = {name for name, ours in _OURS.items() if ours.endswith("_places")}
# Those whose slips are refused: names like those of places, `image_uri` or `img_url`, are usual ones beside `image`.
_MEANT = tuple(name for name in _KNOWN if name not in _PLACES)
# In a table a cell of theirs may hold a list.
LISTS = tuple(
    name for name, ours in _OURS.items() if ours in ("images", "videos", "files", "history") or name in _PLACES
)


def known_columns(names: Iterable[str]) -> list[str]:
    """Those of `names` that say a conversation or media."""
    return [name for name in names if name in _SAYS_SOMETHING]


def unused_columns(names: Iterable[str], mapped: Iterable[str] | None = None) -> list[str]:
    """Those of `names` that nothing is read from.

    Args:
        mapped: the columns that a description names, which are all that is read; None without a description.
    """
    names = list(names)
    known = {*PICTURE_OPTIONS, *(_KNOWN if mapped is None else mapped)}
    if mapped is None and any(_OURS.get(name) in ("images", "videos", "files") for name in names):
        known -= _PLACES
    return [name for name in names if name not in known]


def by_our_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a record that say something, by our names; `PromptError` for two that say the same."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    twice: dict[str, str] = {}
    for name, value in record.items():
        if _is_unset(value):
            continue
        if name not in _OURS:
            _check_other(name, value, record)
            continue
        ours = _OURS[name]
        if ours in found and name not in _PLACES:
            raise PromptError(f"the columns {origin[ours]!r} and {name!r} say the same", hint="Keep one of them.")
        if ours in found:
            twice[ours] = name
            continue
        found[ours], origin[ours] = value, name
    for kind in ("image", "video"):
        places = found.pop(ours := f"{kind}_places", None)
        if places is None or not _wants_places(found, kind):
            continue
        if ours in twice:
            raise PromptError(
                f"the columns {origin[ours]!r} and {twice[ours]!r} say the same", hint="Keep one of them."
            )
        found[f"{kind}s"] = places
    if "response" not in found and "chosen" not in found and "messages" not in found and "caption" in found:
        found["response"] = found["caption"]
    found.pop("caption", None)
    return found


def by_named_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The same where a description says which column holds what (`columns`: our name → the name in the file)."""
    mapped = set(columns.values())
    for name, value in record.items():
        if name not in mapped and not _is_unset(value):
            if name in _TO_BE_NAMED:
                raise PromptError(f"it has {name}, which its description does not name", hint="Add it to `columns`.")
            _check_other(name, value, record, known=mapped)
    return {ours: record[name] for ours, name in columns.items() if not _is_unset(record.get(name))}


def options_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The picture options of a record, as they stand there."""
    return {name: record[name] for name in PICTURE_OPTIONS if not _is_unset(record.get(name))}


def _check_other(name: str, value: Any, record: Mapping[str, Any], known: Iterable[str] | None = None) -> None:
    """Refuse a column that is not read, where leaving it out would change what is learnt."""
    if name in _REFUSED:
        raise PromptError(f"it has {name}, which cannot be honoured: {_REFUSED[name]}")
    if name == "label" and isinstance(value, bool):
        raise PromptError("it has a label that is true or false, of KTO", hint="Give chosen and rejected answers.")
    if name in PICTURE_OPTIONS:
        return
    names = [one for one in (_MEANT if known is None else (*known, *PICTURE_OPTIONS)) if one not in record]
    given = re.sub(r"[- ]", "_", name.lower())
    # A word more or less makes another name: `image_id` is a usual one, and no slip for `use_image_id`.
    alike = [
        one for one in names if one.count("_") == given.count("_") or one.replace("_", "") == given.replace("_", "")
    ]
    if name not in _KNOWN and (close := difflib.get_close_matches(given, alike, 1, 0.8)):
        raise PromptError(f"the column {show_json(name)} is unknown", hint=f"Did you mean {close[0]!r}?")


def _wants_places(found: Mapping[str, Any], kind: str) -> bool:
    """Whether columns that say where media lie are the record's media. A conversation has its own, but for marks."""
    if f"{kind}s" in found or "files" in found:
        return False
    is_marked = f"<{kind}>" in str([found.get(name) for name in ("messages", "prompt", "input")])
    # A video's picture is a preview of it.
    return is_marked or ("messages" not in found and not (kind == "image" and "videos" in found))


def _is_unset(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)
