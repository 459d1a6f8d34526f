"""Files and folders of data → one `Dataset`: samples by number, read from the disk when they are asked for."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.ranges import Range, show
from pocketvlm.training.data.columns import known_columns
from pocketvlm.training.data.folders import find_sets, may_have_sets
from pocketvlm.training.data.layout import Layout
from pocketvlm.training.data.records import Records, open_records
from pocketvlm.training.data.sample import Sample, SampleError

_END = 1 << 20  # bytes
_WEIGHTS = Range(float, 1e-6, 1e6)  # `order` keeps them as fractions of a million


@dataclass(frozen=True, slots=True)
class Source:
    """One set.

    Attributes:
        name: for people.
        weight: how often an epoch goes through it.
        files: its records, and how each file's are read.
        chosen: numbers of the records that count, ascending; all when None.
        system: a system message for conversations that have none.
    """

    name: str
    weight: float
    files: tuple[tuple[Records, Layout], ...]
    chosen: NDArray[np.int64] | None = None
    system: str = ""

    def __len__(self) -> int:
        return sum(len(records) for records, _ in self.files) if self.chosen is None else len(self.chosen)

    def sample(self, index: int) -> Sample:
        """The sample of a number from 0."""
        if self.chosen is not None:
            index = int(self.chosen[index])
        place = 0
        while index >= len(self.files[place][0]):
            index -= len(self.files[place][0])
            place += 1
        records, layout = self.files[place]
        where = records.where(index)
        try:
            record = records.read(index)
        except PocketVLMError as error:
            raise SampleError(where, str(error)) from None
        sample = layout.sample(record, where)
        if not self.system or sample.messages[0]["role"] == "system":
            return sample
        return replace(sample, messages=[{"role": "system", "content": self.system}, *sample.messages])


class Dataset(Sequence[Sample]):
    """Samples of one or several sets, one set behind the other.

    `dataset[i]` is a `Sample`, or raises `SampleError` for what cannot be learnt from: which line, and why. It can be
    sent to worker processes; files are opened when a sample is read, and only where their lines begin is in memory.

    Attributes:
        sources: the sets.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources = tuple(sources)
        tell_apart(self.sources)
        self._ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = bisect_right(self._ends, number)
        return self.sources[place].sample(number - (self._ends[place - 1] if place else 0))

    def fingerprint(self) -> str:
        """Of the files of samples, for a run that goes on: of their sizes and of both ends of each, so that a set of
        any size is known in a moment. Media are not looked at."""
        digest = hashlib.blake2b(digest_size=16)
        for records in (records for source in self.sources for records, _ in source.files):
            with records.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(size.to_bytes(8, "little"))
                for place in (0, max(0, size - _END)):
                    file.seek(place)
                    digest.update(file.read(_END))
        return digest.hexdigest()

    def errors(self) -> Iterator[SampleError]:
        """What is wrong with each sample that is bad, in order; reads all of them."""
        for index in range(len(self)):
            try:
                self[index]
            except SampleError as error:
                yield error

    def unused_columns(self) -> dict[str, list[str]]:
        """File → columns of its first record that nothing is read from; those that have none are left out."""
        found: dict[str, list[str]] = {}
        for records, layout in (file for source in self.sources for file in source.files):
            try:
                names: list[str] = getattr(records, "columns", None) or list(records.read(0))
            except PocketVLMError:
                continue
            if unused := layout.unused(names):
                found[str(records.path)] = unused
        return found

    def shared_with(self, other: Dataset) -> dict[str, int]:
        """File → how many of its records both hold; files that share none are left out."""
        mine, found = self._numbers(), dict[str, int]()
        for path, numbers in other._numbers().items():
            if path in mine and (count := len(np.intersect1d(mine[path], numbers))):
                found[str(path)] = count
        return found

    def _numbers(self) -> dict[Path, NDArray[np.int64]]:
        """File → the numbers of its records that count."""
        found: dict[Path, NDArray[np.int64]] = {}
        for source in self.sources:
            begin = 0
            for records, _ in source.files:
                end = begin + len(records)
                here = np.arange(begin, end) if source.chosen is None else source.chosen
                here = here[(here >= begin) & (here < end)] - begin
                path = records.path.resolve()
                found[path] = np.union1d(found[path], here) if path in found else here
                begin = end
        return found

    def split(self, validation: float | int, seed: int) -> tuple[Dataset, Dataset]:
        """(for training, for validation): a share below 1 or a number of samples, drawn from each set alike.

        The same seed draws the same samples. Both keep the order of the files.

        Raises:
            ConfigError: it is neither, or leaves nothing for one of the two.
        """
        total = len(self)
        is_share = isinstance(validation, float) and 0 < validation < 1
        if isinstance(validation, bool) or not (is_share or (isinstance(validation, int) and validation > 0)):
            raise ConfigError(f"validation={show(validation)} is neither a share below 1 nor a number of samples")
        count = max(1, round(total * validation)) if is_share else int(validation)
        if count >= total:
            raise ConfigError(f"validation takes {count} of {total} samples, which leaves none", hint="Take fewer.")
        drawn = np.zeros(total, np.bool_)
        # This generator's stream is the same in every version of numpy.
        drawn[np.random.RandomState(seeds(seed)).permutation(total)[:count]] = True
        halves: tuple[list[Source], list[Source]] = ([], [])
        begin = 0
        for source in self.sources:
            here = drawn[begin : begin + len(source)]
            begin += len(source)
            for half, chosen in zip(halves, (~here, here), strict=True):
                numbers = np.flatnonzero(chosen).astype(np.int64)
                if len(numbers):
                    half.append(replace(source, chosen=numbers if source.chosen is None else source.chosen[numbers]))
        return Dataset(halves[0]), Dataset(halves[1])

    def __repr__(self) -> str:
        return f"Dataset({', '.join(f'{source.name}: {len(source)}' for source in self.sources)})"


def open_datasets(
    sources: Sequence[str | Path],
    *,
    names: Sequence[str] = (),
    weights: Sequence[float] = (),
    media_dir: str | Path | None = None,
    splits: tuple[str, ...] = ("train",),
) -> Dataset:
    """Open files and folders of samples, in any of the formats of docs/finetuning.md. No line is checked yet.

    Args:
        sources: files and folders.
        names: of the sets of a folder with `dataset_info.json`, or of splits of other folders.
        weights: how often an epoch goes through each set, one for each in order; once when empty.
        media_dir: what paths of media are relative to; the folder of the file that names them when None.
        splits: of a folder that has some, where `names` says nothing: the first of these that is there.

    Raises:
        ConfigError: a file is missing, empty or of no known format, or an option does not fit.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    if isinstance(sources, str | Path) or not sources:
        raise ConfigError(f"sources={show(sources)} is no list of files and folders")
    folder = None if media_dir is None else Path(media_dir).absolute()
    try:
        is_folder = folder is None or folder.is_dir()
    except (OSError, ValueError):  # too long, or with a character that no path has
        is_folder = False
    if not is_folder:
        raise ConfigError(f"media_dir={str(media_dir)!r:.200} is not a folder", hint="Check the path.")
    # Names are those of folders' sets; a file beside them is one set, and is meant without a name.
    choices = [bool(names) and may_have_sets(Path(source)) for source in sources]
    sets = [
        found
        for source, has_choice in zip(sources, choices, strict=True)
        for found in find_sets(Path(source), names if has_choice or not any(choices) else (), folder, splits)
    ]
    if weights and len(weights) != len(sets):
        listed = ", ".join(name for name, _ in sets)
        raise ConfigError(f"weights has {len(weights)} numbers for {len(sets)} sets", hint=f"The sets are {listed}.")
    for weight in weights:
        _WEIGHTS.check("weights", weight)
    opened = [(name, tuple((_open(file, layout), layout) for file, layout in files)) for name, files in sets]
    dataset = Dataset(
        Source(name, float(weight), files)
        for (name, files), weight in zip(opened, weights or [1.0] * len(sets), strict=True)
    )
    if sum(len(source) * source.weight for source in dataset.sources) < 1:
        raise ConfigError("weights leave less than one sample for an epoch", hint="Give larger ones.")
    return dataset


def tell_apart(sources: Iterable[Source]) -> None:
    """Let messages name files that have one name, such as `metadata.jsonl` in several folders, with their folders, in
    place; by the name of a sample alone it is also counted."""
    alike: dict[str, dict[Path, list[Records]]] = {}
    for records in (records for source in sources for records, _ in source.files):
        alike.setdefault(records.path.name, {}).setdefault(records.path.absolute(), []).append(records)
    for files in alike.values():
        parts = 1
        while len({path.parts[-parts:] for path in files}) < len(files):
            parts += 1
        for path, opened in files.items():
            for records in opened:
                records.name = "/".join(path.parts[-parts:])


def _open(path: Path, layout: Layout) -> Records:
    records = open_records(path)
    columns: list[str] | None = getattr(records, "columns", None)
    if columns is None:
        return records
    if layout.columns is None and not known_columns(columns):
        raise ConfigError(
            f"{path} has no known column, but {', '.join(columns)}"[:400],
            hint="Name them messages, or question and answer, with image or images.",
        )
    return records


def seeds(seed: Any, *more: int) -> list[int]:
    """The seed of a generator of its own for each `more`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={show(seed)} is not an integer from 0 to {2**63 - 1}")
    return [seed & 0xFFFFFFFF, seed >> 32, *more]
