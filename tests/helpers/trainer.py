"""Small runs of nano, for tests of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.training import sample
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.processing.processor import Processor
from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.examples import ExampleEncoder
from pocketvlm.training.feed import Feed
from pocketvlm.training.run import objective_of, prepare
from pocketvlm.training.settings import TuneSettings
from pocketvlm.training.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "method": "full",
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "tune": ("decoder", "merger", "compression", "tower"),
}


class Samples(Sequence[Sample]):
    """Some conversations, of which those of `bad` numbers cannot be read."""

    def __init__(self, count: int = 9, bad: Sequence[int] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        if i in self.bad:
            raise SampleError(f"noise.jsonl:{i}", "it is bad")
        words = ["a", "b", "c", "d", "e", "f", "g", "h"]
        return sample(" ".join(words[: 1 + i % 7]), pictures=i % 3, seed=i, rejected="no")


def trainer(nano: ModelDirectory, out: Path, samples: Sequence[Sample] | None = None, **changes: Any) -> Trainer:
    settings = TuneSettings(**{**SETTINGS, **changes})
    model = load_model(nano)
    prepare(model, settings)
    encoder = ExampleEncoder(
        Processor.from_directory(nano.path), options={"max_slice_nums": 1, "downsample_mode": "16x"}
    )
    feed = Feed(samples or Samples(), encoder, pairs=settings.objective == "dpo", seed=settings.seed)
    return Trainer(model, feed, objective_of(settings, model), settings, out)


def weights(one: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in one.model.parameters()])


def run(one: Trainer, stop_after: int = 0) -> list[float]:
    """The losses; as if it was killed behind a step, before its checkpoint."""
    losses = []

    def on_step(report: Any) -> None:
        losses.append(report.loss)
        if report.step == stop_after:
            raise InterruptedError

    try:
        one.run(on_step, lambda: None)
    except InterruptedError:
        assert stop_after
    return losses
