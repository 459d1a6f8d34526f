"""What a run of another kind gives the trainer of its own: parts that learn for a while, an optimiser, a schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer import run, trainer, weights

from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.training import processes
from pocketvlm.training.checkpoints import Progress
from pocketvlm.training.objectives import Answers
from pocketvlm.training.parts import freeze_all_but, part_of
from pocketvlm.training.processes import Processes
from pocketvlm.training.report import Log
from pocketvlm.training.schedules import HalfCosine
from pocketvlm.training.trainer import Trainer


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


class EveryStep:
    """A constant rate until a step, or without end."""

    def __init__(self, last: int = 0) -> None:
        self.steps = last

    def share(self, done: Progress) -> float:
        return done.step / self.steps if self.steps else 0.0

    def factor(self, done: Progress) -> float:  # noqa: ARG002
        return 0.5


def test_parts_that_rest_for_a_while_are_in_the_checkpoint_and_stay_as_they_are(
    nano: ModelDirectory, tmp_path: Path
) -> None:
    one = trainer(nano, tmp_path, save_every=1)
    run(one, 2)
    freeze_all_but(one.model, ("merger",))
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    for found in one.feed.steps(2, 2, 4, 0, 1):
        one.step(found)
    changed = {name for name, p in one.model.named_parameters() if not p.equal(before[name])}
    assert {part_of(name) for name in changed} == {"merger"}
    one.save()
    again = trainer(nano, tmp_path)
    assert again.progress.step == 4
    assert weights(again).equal(weights(one))


def test_a_gradient_that_no_process_has_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    here, other, neither = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    here.grad = torch.ones(2)

    of_other_process = iter(([0, 1, 0], [0, 0, 5, 5]))  # it has one for `other` alone, and nobody sends the third

    def reduce(sent: torch.Tensor) -> None:
        sent += torch.tensor(next(of_other_process))

    monkeypatch.setattr(processes.dist, "all_reduce", reduce)
    Processes(0, 2).add_gradients([here, other, neither])
    assert here.grad.tolist() == [1, 1]
    assert other.grad is not None
    assert other.grad.tolist() == [5, 5]
    assert neither.grad is None


def test_a_schedule_and_an_optimiser_of_its_own(nano: ModelDirectory, tmp_path: Path) -> None:
    def made(last: int) -> Trainer:
        plain = trainer(nano, tmp_path / "unused")
        sgd = torch.optim.SGD(plain.parameters, 1.0, momentum=0.9)
        parts = (plain.model, plain.feed, plain.objective, plain.settings, tmp_path / "run")
        return Trainer(*parts, optimiser=sgd, schedule=EveryStep(last))

    rates: list[float] = []
    one = made(last=3)
    one.run(lambda report: rates.append(report.rate), lambda: None)
    assert rates == [pytest.approx(0.5e-3)] * 3
    one.progress.place["stage"] = 2
    one.save()
    again = made(last=4)
    assert (again.progress.step, again.progress.place) == (3, {"stage": 2})
    assert "momentum_buffer" in again.optimiser.state_dict()["state"][0]
    again.run(lambda report: rates.append(report.rate), lambda: None)
    assert len(rates) == 4


def test_figures_of_an_objective_and_a_run_without_end_are_in_its_log(nano: ModelDirectory, tmp_path: Path) -> None:
    class Telling(Answers):
        def figures(self) -> Mapping[str, float]:
            return {"characters": 0.25}

    plain = trainer(nano, tmp_path)
    one = Trainer(plain.model, plain.feed, Telling(), plain.settings, tmp_path, schedule=EveryStep())
    reports: list[Any] = []
    for found in one.feed.steps(0, 1, 4, 0, 1):
        reports.append(one.step(found))
    assert reports[0].left == math.inf
    with Log(tmp_path / "log.jsonl", {}, 0) as log:
        log.step(reports[0])
    _, line = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines())
    assert line["figures"] == {"characters": 0.25}
    assert (line["step"], line["left"]) == (1, None)


def test_a_run_ends_by_what_comes_first_and_its_rate_with_it() -> None:
    both = HalfCosine(100, 1.0, 0.1)
    assert both.share(Progress(step=50, seconds=6)) == 0.5
    assert both.share(Progress(step=10, seconds=48)) == 0.8
    assert both.share(Progress(step=10, seconds=90)) == 1.0
    assert both.factor(Progress(step=0, seconds=0)) == pytest.approx(0.01)
    assert both.factor(Progress(step=10, seconds=30)) == pytest.approx(0.5)
    assert HalfCosine(100, None, 0.1).factor(Progress(step=4, seconds=1e9)) == 0.5
