"""A file or a folder that holds data → its files, each with the layout of its records.

A folder is one of: LLaMA-Factory's (`dataset_info.json`), one of Hugging Face `datasets` (`metadata.jsonl`, `.csv` or
`.parquet` beside pictures, or Parquet files), or any with one kind of files of samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pocketvlm.errors import ConfigError
from pocketvlm.training.data.dataset_info import FILE, described_sets, is_described
from pocketvlm.training.data.layout import Layout
from pocketvlm.training.data.records import JSON_SUFFIXES, SUFFIXES, TABLE_SUFFIXES
from pocketvlm.training.settings import LOG, LOG_BEGINS

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# What `datasets` takes for the name of a split, in the name of a file or a folder.
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
_SPLITS |= {"evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLITS |= {"dev": "validation"}
_KINDS = ((".parquet",), JSON_SUFFIXES, TABLE_SUFFIXES)

Found = tuple[str, list[tuple[Path, Layout]]]  # a set's name, and its files


def find_sets(source: Path, names: Sequence[str] = (), media_folder: Path | None = None) -> list[Found]:
    """The sets in a file or a folder.

    Args:
        names: of a LLaMA-Factory folder's sets, or of splits of other folders; for those the training split when empty.
        media_folder: what paths of media are relative to; the folder of the file that names them when None.

    Raises:
        ConfigError: there is nothing to read, or no such name.
    """
    try:
        source.stat()
    except FileNotFoundError:
        pass  # what reads it says so
    except (OSError, ValueError) as error:  # too long, in a folder that is closed to us, a zero byte
        reason = error.strerror if isinstance(error, OSError) else "it has a zero byte"
        raise ConfigError(f"{str(source)!r:.80} cannot be read: {reason}", hint="Check the path.") from None
    if source.name == FILE and source.is_file() and is_described(source.parent):
        source = source.parent
    if not source.is_dir():
        if names:
            raise ConfigError(f"{source} is no folder of sets to choose {names[0]!r} from", hint="Leave the name out.")
        return [(source.name, [(source, _layout(source, media_folder))])]
    if is_described(source):
        return [
            (name, [(file, layout) for file in (_files(path) if path.is_dir() else [path])])
            for name, path, layout in described_sets(source, names, media_folder)
        ]
    if (source / "state.json").exists() and any(source.glob("*.arrow")):
        hint = "Write it with to_parquet, or to_json, instead."
        raise ConfigError(f"{source} was written by save_to_disk of datasets, which is not read", hint=hint)
    splits: dict[str, list[Path]] = {}
    for file in _files(source):
        splits.setdefault(_split_of(file.relative_to(source)), []).append(file)
    wanted = [_SPLITS.get(name, name) for name in names] or ["train" if "train" in splits else ""]
    if not names and "" not in splits and "train" not in splits:
        raise ConfigError(f"{source} holds no training split, but {', '.join(splits)}", hint="Give its name.")
    for name in wanted:
        if name not in splits:
            raise ConfigError(f"{source} has no split {name!r}", hint=f"It has {', '.join(filter(None, splits))}.")
    return [
        (
            f"{source.name}:{name}" if names else source.name,
            [(file, _layout(file, media_folder)) for file in splits[name]],
        )
        for name in wanted
    ]


def _files(folder: Path) -> list[Path]:
    """The files of samples in a folder: metadata beside pictures, or else all of one kind."""
    if metadata := sorted(file for name in _METADATA for file in folder.rglob(name)):
        by_folder = [file.parent for file in metadata]
        if twins := [file for file in metadata if by_folder.count(file.parent) > 1]:
            raise ConfigError(f"{twins[0].parent} has {twins[0].name} and {twins[1].name}", hint="Keep one of them.")
        return metadata
    # What runs have written whose folders lie among the data.
    logs = {file for file in folder.rglob(LOG) if _is_log(file)}
    runs = {file.parent for file in logs} - {folder}
    for places in (folder.glob, folder.rglob):
        for suffixes in _KINDS:
            named = (file for suffix in suffixes for file in places(f"*{suffix}"))
            good = (file for file in named if file not in logs and runs.isdisjoint(file.parents))
            if found := sorted(file for file in good if file.is_file()):
                return found
    raise ConfigError(f"{folder} holds no file of samples", hint=f"Put one of {', '.join(SUFFIXES)} into it.")


def _is_log(file: Path) -> bool:
    """Whether a run has written it."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(LOG_BEGINS)) == LOG_BEGINS.encode()


def _split_of(path: Path) -> str:
    """The split that a file is of, by its name, or by a folder's; "" where none says so."""
    words: Iterable[str] = (word for part in reversed(path.parts) for word in re.split(r"[-._ ]", part.lower()))
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def _layout(file: Path, media_folder: Path | None) -> Layout:
    return Layout((media_folder or file.parent).absolute(), inside=file.name in _METADATA and media_folder is None)
