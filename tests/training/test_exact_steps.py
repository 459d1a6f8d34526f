"""Steps, number by number. By plain gradient descent: Adam's steps are as long whatever the size of the gradients, so
that it hides a wrong weight, a lost limit and gradients that are left from the step before."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer import Samples, run, trainer, weights
from torch import Tensor

from pocketvlm.errors import ConfigError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.optimisers import make_optimiser
from pocketvlm.training.processes import Processes
from pocketvlm.training.settings import TuneSettings
from pocketvlm.training.trainer import Report, Trainer

RATE, CLIP = 1e-2, 0.5
SETTINGS: dict[str, Any] = {
    "learning_rate": RATE,
    "warmup": 0.5,
    "steps": 4,
    "micro_tokens": 64,
    "clip": CLIP,
    "tune": ("merger", "compression"),
}


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


def descent(nano: ModelDirectory, out: Path, samples: Samples | None = None, **changes: Any) -> Trainer:
    """A run with plain gradient descent."""
    one = trainer(nano, out, samples, **{**SETTINGS, **changes})
    one.optimiser = torch.optim.SGD(one.parameters, 1.0)
    return one


def gradients(one: Trainer, examples: Sequence[Any]) -> tuple[float, list[Tensor]]:
    """Of the mean over all learnt tokens of the examples, one forward each."""
    found = [
        one.objective.losses(one.model, batch) for item in examples for batch in one.objective.batches([item], 1, 1)
    ]
    loss = torch.cat(found).mean()
    return float(loss.detach()), list(torch.autograd.grad(loss, one.parameters))


@pytest.mark.parametrize("clip", [CLIP, 1e6], ids=["clipped", "not clipped"])
def test_each_step_goes_down_the_mean_over_its_learnt_tokens_no_longer_than_the_limit(
    nano: ModelDirectory, tmp_path: Path, clip: float
) -> None:
    one = descent(nano, tmp_path, clip=clip)  # some forwards have no picture, from which nothing of this is learnt
    for step, found in enumerate(one.feed.steps(0, 3, 4, 0, 1)):
        examples = [item for item in found if not isinstance(item, SampleError)]
        assert len({item[0].learnt for item in examples}) > 1, "answers are to be of different lengths"
        loss, expected = gradients(one, examples)
        before = [p.detach().clone() for p in one.parameters]
        report = one.step(found)
        norm = float(torch.stack([g.norm() for g in expected]).norm())
        assert norm > CLIP, "the limit is to be reached"
        assert report.loss == pytest.approx(loss, rel=1e-4)
        assert report.norm == pytest.approx(norm, rel=1e-3)
        assert report.tokens == sum(item[0].learnt for item in examples)
        assert report.rate == pytest.approx(RATE * (0.5, 1.0, 1.0)[step])
        length = report.rate * min(1.0, clip / norm)
        for p, old, gradient in zip(one.parameters, before, expected, strict=True):
            moved, whole = p.detach() - old, length * gradient
            assert (moved + whole).abs().max() <= 1e-3 * whole.abs().max() + 2e-7


class Threads(Processes):
    """Processes of one program, which add up what each of them brings."""

    def __init__(self, rank: int, barrier: threading.Barrier, brought: list[Any]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "meet", barrier.wait)
        object.__setattr__(self, "brought", brought)

    meet: Any
    brought: Any

    def total(self, value: float) -> float:
        self.brought[self.rank] = float(value)
        self.meet()
        total = float(sum(self.brought))
        self.meet()
        return total

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        self.brought[self.rank] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        self.meet()
        for p, *grads in zip(parameters, *self.brought, strict=True):
            p.grad = grads[0] + grads[1]
        self.meet()


@pytest.mark.parametrize("bad", [(), (1, 2, 3)], ids=["uneven", "some bad"])
def test_processes_with_unlike_shares_take_the_steps_of_one(
    nano: ModelDirectory, tmp_path: Path, bad: tuple[int, ...]
) -> None:
    samples = Samples(9, bad=bad)
    alone = descent(nano, tmp_path / "alone", samples)
    start = weights(alone)
    expected = [alone.step(found) for found in alone.feed.steps(0, 3, 4, 0, 1)]
    barrier, brought = threading.Barrier(2, timeout=120), [None, None]
    both = [descent(nano, tmp_path / str(rank), samples) for rank in range(2)]
    reports: list[list[Report]] = [[], []]

    def work(rank: int) -> None:
        one = both[rank]
        one.processes = Threads(rank, barrier, brought)
        try:
            for found in one.feed.steps(0, 3, 4, rank, 2):
                reports[rank].append(one.step(found))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, found in zip(both, reports, strict=True):
        assert [(r.tokens, r.rate) for r in found] == [(r.tokens, r.rate) for r in expected]
        assert [r.loss for r in found] == pytest.approx([r.loss for r in expected], rel=1e-4)
        assert [r.norm for r in found] == pytest.approx([r.norm for r in expected], rel=1e-3)
        assert (weights(one) - weights(alone)).norm() < 1e-3 * (weights(alone) - start).norm()


def test_an_epoch_ends_behind_its_last_samples(nano: ModelDirectory, tmp_path: Path) -> None:
    steps = [trainer(nano, tmp_path, steps=None, epochs=epochs).schedule.steps for epochs in (1.0, 2.0, 0.1)]
    assert steps == [3, 5, 1]  # of 9 samples, 4 a step


def test_weights_decay_as_asked_and_by_default_not_at_all() -> None:
    for optimiser in ("adamw", "adamw8bit"):
        for decay in (0.0, 0.25):
            matrix, bias = (torch.nn.Parameter(torch.full(shape, 2.0)) for shape in ((4, 2), (8,)))
            made = make_optimiser([matrix, bias], TuneSettings(optimiser=optimiser, weight_decay=decay), 0.5)
            for parameter in (matrix, bias):
                parameter.grad = torch.zeros_like(parameter)
            made.step()
            assert matrix.detach().flatten().tolist() == pytest.approx([2.0 * (1 - 0.5 * decay)] * 8)
            assert bias.detach().tolist() == [2.0] * 8


def test_a_run_that_was_begun_before_some_tensors_were_kept_from_decay_does_not_go_on(
    nano: ModelDirectory, tmp_path: Path
) -> None:
    run(trainer(nano, tmp_path, steps=1, save_every=1, weight_decay=0.1))
    assert trainer(nano, tmp_path, steps=1, save_every=1, weight_decay=0.1).progress.step == 1
    (state,) = tmp_path.glob("checkpoints/step-*/state.json")
    facts = json.loads(state.read_text(encoding="utf-8"))
    del facts["identity"]["what decays"]
    state.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ConfigError, match="holds a run with what decays=None"):
        trainer(nano, tmp_path, steps=1, save_every=1, weight_decay=0.1)


def test_the_loss_of_validation_is_the_mean_over_its_tokens_without_dropout(
    nano: ModelDirectory, tmp_path: Path
) -> None:
    one = trainer(nano, tmp_path, method="lora", dropout=0.5, micro_tokens=64, tune=("decoder",))
    with torch.no_grad():
        for name, p in one.learns.items():
            if "lora_B" in name:
                p.normal_(std=0.02)
    one.validation = one.feed
    one.model.eval()
    with torch.no_grad():
        losses = [
            one.objective.losses(one.model, b) for item in one.feed.all() for b in one.objective.batches([item], 1, 1)
        ]
    one.model.train()
    assert one.evaluate() == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
