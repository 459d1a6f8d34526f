"""LLaMA-Factory's `dataset_info.json` → the files of the sets that were chosen, and the layout of each.

Only sets in files (`file_name`) are read: nothing is downloaded. A description that says something that is not honoured
here is refused, one of a set that was not chosen is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.text_files import read_json
from pocketvlm.training.data.conversations import TAGS, Tags
from pocketvlm.training.data.layout import Layout

FILE = "dataset_info.json"
_KEYS = ("file_name", "formatting", "ranking", "columns", "tags", "split")
_UNUSED = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "load_from", "subset", "folder")
_SHARED = ("system", "tools", "images", "videos", "chosen", "rejected")
# Our name → theirs, and the column that holds it where the description has no `columns`. Where it has some, there is no
# column but those that it names.
_ALPACA: dict[str, tuple[str, str | None]] = {
    "prompt": ("prompt", "instruction"),
    "input": ("query", "input"),
    "response": ("response", "output"),
}
_ALPACA |= {"history": ("history", None)}
_SHAREGPT: dict[str, tuple[str, str | None]] = {"messages": ("messages", "conversations")}


def is_described(folder: Path) -> bool:
    """Whether there is a description of LLaMA-Factory; `datasets` writes another file of that name."""
    if not (folder / FILE).is_file() or (folder / "state.json").exists():
        return False
    return all(isinstance(one, dict) for one in read_json(folder / FILE).values())


def described_sets(folder: Path, names: Sequence[str], media_folder: Path | None) -> list[tuple[str, Path, Layout]]:
    """(name, file or folder, layout) of each set of a description that was chosen; of the only one without names.

    Raises:
        ConfigError: a set is not there, or cannot be read as it is described.
    """
    path = folder / FILE
    known = read_json(path)
    listed = ", ".join(known) or "none"
    if not names:
        if len(known) != 1:
            raise ConfigError(f"{path} describes {len(known)} sets", hint=f"Choose by name among {listed[:300]}.")
        names = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"{path} describes no set {name!r}", hint=f"It has {listed[:300]}.")
    return [(name, *_set(folder, f"{path}, {name}", known[name], media_folder)) for name in names]


def _set(folder: Path, where: str, about: Mapping[str, Any], media_folder: Path | None) -> tuple[Path, Layout]:
    if not isinstance(about, Mapping):
        raise ConfigError(f"{where} is no description of a set", hint='Such as {"file_name": "data.json"}.')
    file_name = about.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        hint = "Download it, and give its file_name." if any(key in about for key in _UNUSED) else "It names a file."
        raise ConfigError(f"{where} has no file_name, and nothing is downloaded here", hint=hint)
    for key in about:
        if key not in _KEYS and not (key in _UNUSED and not about[key]):
            raise ConfigError(f"{where}: {key} cannot be honoured", hint="Take it out, or give the file itself.")
    if about.get("split") not in (None, "train"):
        raise ConfigError(f"{where}: split is {about['split']!r:.40}, and a file has none", hint="Take it out.")
    formatting = about.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise ConfigError(f"{where}: formatting is {formatting!r:.40}, expected alpaca, sharegpt or openai")
    ranking = about.get("ranking", False)
    if not isinstance(ranking, bool):
        raise ConfigError(f"{where}: ranking is {ranking!r:.40}, expected true or false")
    file = folder / file_name
    if not file.exists():
        raise ConfigError(f"{where}: file_name is {file_name!r:.200}, which does not exist in {folder}")
    tags = _tags(where, formatting, _strings(about.get("tags"), f"{where}: tags"))
    given = about.get("columns")
    columns = _columns(where, formatting, None if given is None else _strings(given, f"{where}: columns"))
    return file, Layout(media_folder or folder, columns, tags, ranking)


def _columns(where: str, formatting: str, given: dict[str, str] | None) -> dict[str, str]:
    own = _ALPACA if formatting == "alpaca" else _SHAREGPT
    if given is None:
        return {ours: default for ours, (_, default) in own.items() if default}
    columns = {ours: given.pop(theirs) for ours, (theirs, _) in own.items() if theirs in given}
    columns |= {name: given.pop(name) for name in _SHARED if name in given}
    if given:
        name = next(iter(given))
        known = ", ".join([*(theirs for theirs, _ in own.values()), *_SHARED])
        raise ConfigError(f"{where}: columns has {name!r}, which cannot be honoured", hint=f"It may have {known}.")
    return columns


def _tags(where: str, formatting: str, given: dict[str, str]) -> Tags | None:
    if unknown := [name for name in given if name not in TAGS]:
        raise ConfigError(f"{where}: tags has {unknown[0]!r}, which is unknown", hint=f"It may have {', '.join(TAGS)}.")
    if formatting == "openai" and not given:
        return None  # `role` and `content`, and OpenAI's roles
    return Tags(**given)


def _strings(value: Any, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(one, str | None) for one in value.values()):
        raise ConfigError(f"{what} is no object of names")
    return {name: one for name, one in value.items() if one}
