"""A file or a folder that holds data → its files, each with the layout of its records.

A folder is one of: LLaMA-Factory's (`dataset_info.json`), one of Hugging Face `datasets` (`metadata.jsonl`, `.csv` or
`.parquet` beside pictures, or Parquet files), or any with one kind of files of samples. What is not read of it is said.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pocketvlm.errors import ConfigError
from pocketvlm.training.data.dataset_info import FILE, described_sets, is_described
from pocketvlm.training.data.layout import Layout
from pocketvlm.training.data.records import JSON_SUFFIXES, SUFFIXES, TABLE_SUFFIXES
from pocketvlm.training.settings import LOG, LOG_BEGINS

logger = logging.getLogger(__name__)
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# What `datasets` takes for the name of a split, in the name of a file or a folder.
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
_SPLITS |= {"evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLITS |= {"dev": "validation"}
# Files in the folder itself go before those in folders of it, but Parquet goes before all where none of them is called
# a training split: a set of the Hub has it in a folder `data`, and may have JSON that says something else above.
_KINDS = (
    (".parquet", False),
    (".parquet", True),
    (JSON_SUFFIXES, False),
    (TABLE_SUFFIXES, False),
    (JSON_SUFFIXES, True),
    (TABLE_SUFFIXES, True),
)
_ABOUT = (FILE, "dataset_infos.json")  # what `datasets` writes of a set, which are no samples
_TRAINING = ("train",)  # where nothing else is asked for
_MOST_NAMED = 5  # files in a message

Found = tuple[str, list[tuple[Path, Layout]]]  # a set's name, and its files


def find_sets(
    source: Path,
    names: Sequence[str] = (),
    media_folder: Path | None = None,
    splits: tuple[str, ...] = _TRAINING,
) -> list[Found]:
    """The sets in a file or a folder.

    Args:
        names: of a LLaMA-Factory folder's sets, or of splits of other folders.
        media_folder: what paths of media are relative to; the folder of the file that names them when None.
        splits: which of them is meant where none is named: the first that is there. A training split stands for others
            only where it is all that there is.

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
            (name, [(file, layout) for file in (_all_of(path) if path.is_dir() else [path])])
            for name, path, layout in described_sets(source, names, media_folder)
        ]
    if (source / "state.json").exists() and any(source.glob("*.arrow")):
        hint = "Write it with to_parquet, or to_json, instead."
        raise ConfigError(f"{source} was written by save_to_disk of datasets, which is not read", hint=hint)
    parts: dict[str, list[Path]] = {}
    files, others = _files(source)
    for file in files:
        parts.setdefault(_split_of(file.relative_to(source)), []).append(file)
    wanted = [_SPLITS.get(name, name) for name in names] or [_meant(source, parts, splits)]
    for name in wanted:
        if name not in parts:
            listed = ", ".join(filter(None, parts))
            hint = f"It has {listed}." if listed else "No file in it is named after one; leave the name out."
            raise ConfigError(f"{source} has no split {name!r}", hint=hint)
    if not names:
        others += [file for name, some in parts.items() if name not in wanted for file in some]
    _tell(source, others)
    return [
        (
            f"{source.name}:{name}" if names or (name and splits != _TRAINING) else source.name,
            [(file, _layout(file, media_folder)) for file in parts[name]],
        )
        for name in wanted
    ]


def may_have_sets(source: Path) -> bool:
    """Whether it can be asked for sets by name: a folder that describes some, or has splits, or a description."""
    try:
        if source.name == FILE or not source.is_dir():
            return source.name == FILE
        return is_described(source) or any(_split_of(file.relative_to(source)) for file in _files(source)[0])
    except (OSError, ValueError):  # too long, or with a character that no path has
        return False


def _meant(source: Path, parts: Mapping[str, list[Path]], splits: tuple[str, ...]) -> str:
    """The split that is meant where none is named."""
    if found := [name for name in splits if name in parts]:
        return found[0]
    if "" in parts and (splits == _TRAINING or len(parts) == 1):
        return ""
    if splits == _TRAINING:
        raise ConfigError(f"{source} holds no training split, but {', '.join(parts)}", hint="Give its name.")
    if len(parts) == 1:
        return next(iter(parts))
    listed = ", ".join(name or "files of no split" for name in parts)
    raise ConfigError(f"{source} holds {listed}, and no {' or '.join(splits)} to measure with", hint="Name a file.")


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of samples in a folder, metadata beside pictures or else all of one kind; and those of other kinds."""
    every = sorted(file for file in folder.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
    # What runs have written whose folders lie among the data.
    logs = {file for file in every if file.name == LOG and _is_log(file)}
    runs = {file.parent for file in logs} - {folder}
    every = [one for one in every if one not in logs and one.name not in _ABOUT and runs.isdisjoint(one.parents)]
    if metadata := [file for file in every if file.name in _METADATA]:
        by_folder = [file.parent for file in metadata]
        if twins := [file for file in metadata if by_folder.count(file.parent) > 1]:
            raise ConfigError(f"{twins[0].parent} has {twins[0].name} and {twins[1].name}", hint="Keep one of them.")
        return metadata, _but(metadata, every)
    above = [file for file in every if file.parent == folder]
    has_training = any(_split_of(file.relative_to(folder)) == "train" for file in above)
    for suffixes, is_deep in _KINDS:
        if is_deep and has_training:
            continue
        if found := [file for file in every if file.name.endswith(suffixes) and (is_deep or file.parent == folder)]:
            return found, _but(found, every)
    raise ConfigError(f"{folder} holds no file of samples", hint=f"Put one of {', '.join(SUFFIXES)} into it.")


def _all_of(folder: Path) -> list[Path]:
    """The files of samples in a folder that is one set."""
    files, others = _files(folder)
    _tell(folder, others)
    return files


def _but(taken: Iterable[Path], every: Iterable[Path]) -> list[Path]:
    without = set(taken)
    return [file for file in every if file not in without]


def _tell(folder: Path, others: list[Path]) -> None:
    """Name files that look like samples and are not read."""
    if not others:
        return
    named = ", ".join(file.relative_to(folder).as_posix() for file in sorted(others)[:_MOST_NAMED])
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    logger.warning("%s: not read are %s%s", folder, named, more)


def _is_log(file: Path) -> bool:
    """Whether a run has written it."""
    with file.open("rb") as opened:
        return opened.read(len(LOG_BEGINS)) == LOG_BEGINS.encode()


def _split_of(path: Path) -> str:
    """The split that a file is of, by its name, or by a folder's; "" where none says so."""
    words: Iterable[str] = (word for part in reversed(path.parts) for word in re.split(r"[-._ ]", part.lower()))
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def _layout(file: Path, media_folder: Path | None) -> Layout:
    return Layout((media_folder or file.parent).absolute(), inside=file.name in _METADATA and media_folder is None)
