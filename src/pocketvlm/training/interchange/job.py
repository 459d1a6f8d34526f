"""A run as a settings file describes it: settings, data, model and options of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.training.data.dataset import Dataset, Source, open_datasets, seeds
from pocketvlm.training.interchange.programs import NAMES, Program
from pocketvlm.training.settings import TuneSettings

# What decides how a run goes, and not what comes of it.
FREE = ("bad_samples", "micro_tokens", "micro_patches", "report_to", "eval_count")
_LENGTHS = ("steps", "epochs", "minutes")


@dataclass(frozen=True)
class Sets:
    """Some of the data.

    Attributes:
        sources: files and folders.
        names: of the sets in a folder that describes several.
        media_dir: what paths of media are relative to; the folder of the file that names them when None.
        first: only so many samples of each set, in the order of its file; all when None.
        drawn: only so many samples of each set, by chance; all when None.
        system: a system message for conversations that have none.
    """

    sources: tuple[str, ...]
    names: tuple[str, ...] = ()
    media_dir: str | None = None
    first: int | None = None
    drawn: int | None = None
    system: str = ""

    def open(self, seed: int) -> list[Source]:
        """The sets, with what is asked of them."""
        opened = open_datasets(self.sources, names=self.names, media_dir=self.media_dir).sources
        return [replace(self._some(source, seed), system=self.system) for source in opened]

    def _some(self, source: Source, seed: int) -> Source:
        count, total = self.first if self.drawn is None else self.drawn, len(source)
        if count is None or (self.drawn is None and count >= total):
            return source
        if count > total:
            raise ConfigError(f"{source.name} has {total} samples, and {count} of them are asked for", hint="Take all.")
        if self.drawn is None:
            chosen = np.arange(count, dtype=np.int64)
        else:  # the stream of this generator is the same in every version of numpy
            chosen = np.sort(np.random.RandomState(seeds(seed)).permutation(total)[:count]).astype(np.int64)
        return replace(source, chosen=chosen)


def open_sets(sets: Sequence[Sets], seed: int) -> Dataset:
    """All of them, one behind the other.

    Raises:
        ConfigError: a file is missing or of no known format, or has fewer samples than are asked for.
    """
    return Dataset(source for one in sets for source in one.open(seed))


@dataclass(frozen=True)
class Job:
    """Attributes:
    settings: of `TuneSettings`, by name; what it does not say is as there.
    model: a directory or a name in a hub; None where the file names none.
    data, validation: to learn from, and to measure with.
    split: a share of the data, or a number of samples, to measure with instead of learning them.
    workers: processes that read pictures ahead.
    options: of pictures, by the names of the command line's.
    notes: lines for people: what was left out, and what is different here.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    data: tuple[Sets, ...] = ()
    validation: tuple[Sets, ...] = ()
    split: float | int | None = None
    workers: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def samples(self, seed: int) -> Dataset:
        """What is learnt from.

        Raises:
            ConfigError: the file names no data, or it cannot be read.
        """
        if not self.data:
            raise ConfigError("no data is named", hint="Name files or folders of conversations.")
        return open_sets(self.data, seed)

    def measured(self, seed: int, split: float | None = None) -> Dataset | None:
        """What is measured with; None where the file names none, or a share of the other data is asked for."""
        return open_sets(self.validation, seed) if self.validation and not split else None

    def settings_with(self, given: Mapping[str, Any]) -> TuneSettings:
        """The settings, where what is given (and not None) wins. How long a run is, is one thing.

        Raises:
            ConfigError: a value is out of its range, or two do not go together.
        """
        given = {name: value for name, value in given.items() if value is not None}
        own = dict(self.settings)
        if any(name in given for name in _LENGTHS):
            own = {name: value for name, value in own.items() if name not in _LENGTHS}
        return TuneSettings(**{**own, **given})


def check_place(settings: TuneSettings, program: Program, known: Sequence[str]) -> None:
    """Refuse settings that are not as by default and have no place in a program.

    Args:
        known: names of settings that it has a place for.

    Raises:
        ConfigError: it has none for a setting.
    """
    for one in fields(TuneSettings):
        value = getattr(settings, one.name)
        if one.name not in known and one.name not in FREE and value != one.default:
            option = f"--{one.name.replace('_', '-')}"
            raise ConfigError(f"{NAMES[program]} has no place for {option} {value}", hint="Leave the option out.")
