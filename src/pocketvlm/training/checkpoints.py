"""Checkpoints of a run: everything that the next step needs, whole or not at all.

A checkpoint is a folder `checkpoints/step-N`. It is written under another name, brought to the disk and then renamed,
so that a process that is killed at any moment leaves the one before. The last two are kept, and beside them, in
`checkpoints/best`, the weights with the lowest validation loss.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pocketvlm.errors import CheckpointError, ConfigError, OutputError, PocketVLMError
from pocketvlm.files import sync_directory
from pocketvlm.training.averaging import MovingAverage
from pocketvlm.training.optimisers import Optimiser

KEPT = 2
_OLD = ".old.partial"  # what was there before, until what takes its place has its name
_WEIGHTS, _OPTIMISER, _STATE = "trainable.safetensors", "optimiser.pt", "state.json"
_AVERAGE, _BEST = "average.safetensors", "best"
# What the libraries raise for a file that is missing, cut off, or of other content.
_UNREADABLE = (OSError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError, EOFError, UnpicklingError)


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: steps that are done.
        seconds: of training, over all starts.
        tokens: learnt so far.
        bad: samples that nothing could be learnt from, as source → reason.
        cut: samples of which the end was cut off, as source → tokens.
        loss: mean of the last steps.
        evaluated: the step after which the run was evaluated last.
        best_loss: the lowest of the validation losses so far, and `best_step` the step that it was measured after.
        place: what else a run keeps, of a feed, a schedule or an objective of its own; as JSON has it.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    loss: float | None = None
    evaluated: int = 0
    best_loss: float | None = None
    best_step: int = 0
    place: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """Args:
    out: folder of the run.
    identity: what a run that goes on must have as it was begun.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = out / "checkpoints", identity

    def save(
        self,
        learns: Mapping[str, nn.Parameter],
        optimiser: Optimiser,
        progress: Progress,
        average: MovingAverage | None = None,
    ) -> None:
        """Write the state of a run after a step.

        Args:
            learns: all parameters that do so in the run, by name.

        Raises:
            OutputError: it could not be written; the one before is still there.
        """
        with self._folder(f"step-{progress.step:08d}") as partial:
            _save(learns, partial / _WEIGHTS)
            torch.save(optimiser.state_dict(), partial / _OPTIMISER)
            if average is not None and average.values:
                save_file(average.values, partial / _AVERAGE)
            state = {"identity": self.identity, "progress": asdict(progress)}
            (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
        for old in self._all()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def save_best(self, learns: Mapping[str, nn.Parameter]) -> None:
        """Keep the weights as they are, instead of those that were the best before.

        Raises:
            OutputError: they could not be written.
        """
        with self._folder(_BEST) as partial:
            _save(learns, partial / _WEIGHTS)

    def restore_best(self, learns: Mapping[str, nn.Parameter]) -> None:
        """Bring the weights of `save_best` back, in place.

        Raises:
            CheckpointError: they cannot be read.
        """
        with _read_from(self.folder / _BEST):
            _load(learns, self.folder / _BEST / _WEIGHTS)

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """A folder to fill, which then gets its name and takes the place of one that had it."""
        final = self.folder / name
        partial, before = self.folder / f"{name}.partial", self.folder / f"{name}{_OLD}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for file in partial.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            if final.exists():
                final.replace(before)
            partial.replace(final)
            sync_directory(self.folder)
            shutil.rmtree(before, ignore_errors=True)
        except (OSError, SafetensorError, RuntimeError) as error:  # a full disk, as each library says it
            shutil.rmtree(partial, ignore_errors=True)
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            hint = "Make room; the same command then goes on from the checkpoint before."
            raise OutputError(f"the checkpoint {final} could not be written ({reason:.200})", hint=hint) from None

    def restore(
        self, learns: Mapping[str, nn.Parameter], optimiser: Optimiser, average: MovingAverage | None = None
    ) -> Progress:
        """Bring the last checkpoint back, in place; step 0 where there is none.

        Raises:
            ConfigError: it is of another run.
            CheckpointError: it cannot be read.
        """
        state = self.last_state()
        if state is None:
            return Progress()
        last = self._all()[-1]
        now = json.loads(json.dumps(self.identity))
        if differing := [name for name in now if state["identity"].get(name) != now[name]]:
            name = differing[0]
            raise ConfigError(
                f"{self.folder.parent} holds a run with {name}={state['identity'].get(name)!r}, not {now[name]!r}",
                hint="Go on with the same settings, or name another folder.",
            )
        with _read_from(last):
            _load(learns, last / _WEIGHTS)
            if average is not None and average.values:
                average.load(load_file(last / _AVERAGE))
            optimiser.load_state_dict(torch.load(last / _OPTIMISER, weights_only=True, map_location="cpu"))
            return Progress(**state["progress"])

    def tidy(self) -> None:
        """Take away what a process that was killed while it wrote has left half done; what it had only moved aside
        comes back. For one process alone, before the others read."""
        for left in self.folder.glob(f"*{_OLD}"):
            final = self.folder / left.name.removesuffix(_OLD)
            if not final.exists():
                left.replace(final)
        for left in self.folder.glob("*.partial"):
            shutil.rmtree(left, ignore_errors=True)

    def last_state(self) -> dict[str, Any] | None:
        """Identity and progress of the last checkpoint; None where there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        found = self._all()
        if not found:
            return None
        with _read_from(found[-1]):
            state: dict[str, Any] = json.loads((found[-1] / _STATE).read_text(encoding="utf-8"))
            if not isinstance(state["identity"], dict) or not isinstance(state["progress"], dict):
                raise TypeError("no state")
            return state

    def clear(self) -> None:
        """Remove all of them, once what they were for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")


@contextmanager
def _read_from(folder: Path) -> Iterator[None]:
    """One line for a checkpoint that is damaged, or of which a file is missing, in the words of any library."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, PocketVLMError):
            raise
        text = f"the checkpoint {folder} cannot be read ({type(error).__name__}: {error!s:.120})"
        hint = "Remove it, and the same command goes on from the one before."
        raise CheckpointError(text, hint=hint) from None


def _load(learns: Mapping[str, nn.Parameter], file: Path) -> None:
    weights = load_file(file)
    with torch.no_grad():
        for name, parameter in learns.items():
            parameter.copy_(weights[name])


def _save(learns: Mapping[str, nn.Parameter], file: Path) -> None:
    save_file({name: p.detach().contiguous() for name, p in learns.items()}, file)
