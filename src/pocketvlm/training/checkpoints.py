"""Checkpoints of a run: everything that the next step needs, whole or not at all.

A checkpoint is a folder `checkpoints/step-N`. It is written under another name, brought to the disk and then renamed,
so that a process that is killed at any moment leaves the one before. The last two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pocketvlm.errors import ConfigError, OutputError
from pocketvlm.files import sync_directory

KEPT = 2
_WEIGHTS, _OPTIMISER, _STATE = "trainable.safetensors", "optimiser.pt", "state.json"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: steps that are done.
        seconds: of training, over all starts.
        tokens: learnt so far.
        bad: samples that nothing could be learnt from, as source → reason.
        loss: mean of the last steps.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    loss: float | None = None


class Checkpoints:
    """Args:
    out: folder of the run.
    identity: what a run that goes on must have as it was begun.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = out / "checkpoints", identity

    def save(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Raises: OutputError: it could not be written; the one before is still there."""
        final = self.folder / f"step-{progress.step:08d}"
        partial = final.with_suffix(".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_trainable(model), partial / _WEIGHTS)
            torch.save(optimiser.state_dict(), partial / _OPTIMISER)
            state = {"identity": self.identity, "progress": asdict(progress)}
            (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
            for file in partial.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
            sync_directory(self.folder)
            for old in self._all()[:-KEPT]:
                shutil.rmtree(old)
        except OSError as error:
            raise OutputError(f"the checkpoint {final} could not be written ({error.strerror})") from None

    def restore(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Bring the last checkpoint back; the beginning where there is none.

        Raises:
            ConfigError: it is of another run.
        """
        for left in self.folder.glob("*.partial"):  # by a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        found = self._all()
        if not found:
            return Progress()
        state = json.loads((found[-1] / _STATE).read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self.identity))
        if differing := [name for name in now if state["identity"].get(name) != now[name]]:
            name = differing[0]
            raise ConfigError(
                f"{self.folder.parent} holds a run with {name}={state['identity'].get(name)!r}, not {now[name]!r}",
                hint="Go on with the same settings, or name another folder.",
            )
        weights = load_file(found[-1] / _WEIGHTS)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])
        optimiser.load_state_dict(torch.load(found[-1] / _OPTIMISER, weights_only=True, map_location="cpu"))
        return Progress(**state["progress"])

    def clear(self) -> None:
        """Remove all of them, once what they were for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
