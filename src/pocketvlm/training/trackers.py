"""Where figures of a run go beside its log: TensorBoard, and Weights & Biases, through their own packages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from pocketvlm.errors import need
from pocketvlm.files import whole_file


class Tracker(Protocol):
    """Something that draws figures over steps."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step, by names such as "training/loss"."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run; what a run that goes on does again is drawn once.

    Args:
        step: of the checkpoint that the run goes on from.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=1)}\n```", step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the name of its folder, in the project that `WANDB_PROJECT` names ("pocketvlm" without it). A run that
    goes on continues it; `WANDB_MODE=offline` keeps it on the disk."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:  # noqa: ARG002
        import wandb

        project, name = os.environ.get("WANDB_PROJECT", "pocketvlm"), out.absolute().name
        known = out / "wandb.id"
        number = known.read_text(encoding="utf-8").strip() if known.exists() else ""
        if not number:
            number = token_hex(4)
            with whole_file(known) as file:
                file.write(number.encode())
        self._run: Any = wandb.init(
            project=project, name=name, id=number, resume="allow", dir=str(out), config=dict(settings)
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: Mapping[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises: MissingExtraError: the package of one is not installed."""
    if "tensorboard" in names:
        need("tensorboard", "tensorboard", "tensorboard")
    if "wandb" in names:
        need("wandb", "wandb", "wandb")


def open_trackers(names: Sequence[str], out: Path, settings: Mapping[str, Any], step: int) -> list[Tracker]:
    """Those of some names, whose packages are installed."""
    return [_KINDS[name](out, settings, step) for name in dict.fromkeys(names)]
