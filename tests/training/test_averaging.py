"""The moving average of the weights, the best weights, the optimiser in 8 bits, and signals: what a run ends with."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer import run, trainer, weights
from torch import nn

from pocketvlm.errors import ConfigError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.training.averaging import MovingAverage
from pocketvlm.training.optimisers import state_bytes
from pocketvlm.training.settings import TuneSettings


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


def test_an_average_weighs_older_weights_less_and_less() -> None:
    layer = nn.Linear(2, 2)
    average = MovingAverage(layer, 0.3)  # below (1 + 3) / (10 + 3) from the third step on
    expected = layer.weight.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            layer.weight.normal_()
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    now = layer.weight.detach().clone()
    with average.applied():
        assert torch.allclose(layer.weight, expected, atol=1e-6)
    assert layer.weight.equal(now)
    assert MovingAverage(layer, 0.0).values == {}


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"optimiser": "adamw8bit"}], ids=["ema", "adamw8bit"])
def test_a_run_that_was_killed_goes_on_with_its_average_and_its_moments(
    nano: ModelDirectory, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = trainer(nano, tmp_path / "whole", **changes)
    run(whole)
    run(trainer(nano, tmp_path / "2", save_every=2, **changes), 5)
    again = trainer(nano, tmp_path / "2", save_every=2, **changes)
    assert again.progress.step == 4
    run(again)
    assert weights(again).equal(weights(whole))
    for one in (whole, again):
        one.take_result()
    assert weights(again).equal(weights(whole))


def test_an_average_is_measured_and_is_the_result(nano: ModelDirectory, tmp_path: Path) -> None:
    one = trainer(nano, tmp_path, ema=0.5)
    one.validation = one.feed
    run(one)
    last, measured = weights(one), one.evaluate()
    one.take_result()
    assert not weights(one).equal(last)
    plain = trainer(nano, tmp_path / "plain")
    plain.validation = plain.feed
    assert plain.evaluate() != measured
    plain.model.load_state_dict(one.model.state_dict())
    assert plain.evaluate() == measured


def test_moments_in_8_bits_learn_alike_in_a_quarter_of_the_memory(nano: ModelDirectory, tmp_path: Path) -> None:
    one, eight = trainer(nano, tmp_path / "1"), trainer(nano, tmp_path / "2", optimiser="adamw8bit")
    assert run(one) == pytest.approx(run(eight), rel=0.05)
    sizes = []
    for made in (one, eight):
        tensors = [t for state in made.optimiser.state.values() for t in state.values() if torch.is_tensor(t)]
        sizes.append(sum(t.numel() * t.element_size() for t in tensors if t.dim()))
        planned = state_bytes([p for p in made.model.parameters() if p.requires_grad], made.settings)
        assert planned == pytest.approx(sizes[-1], rel=0.05)  # tables of 8 bits' values are shared
    assert sizes[1] < 0.3 * sizes[0]


def test_the_best_weights_are_kept_and_can_be_the_result(nano: ModelDirectory, tmp_path: Path) -> None:
    one = trainer(nano, tmp_path, steps=4, eval_every=1, result="best", learning_rate=0.1, warmup=0.9)
    one.validation, losses, all_weights = one.feed, [], []

    def evaluate() -> None:
        losses.append(one.evaluate())
        all_weights.append(weights(one))

    one.run(lambda _report: None, evaluate)
    best = losses.index(min(losses))
    assert best < 3  # such a rate ruins it
    assert (one.progress.best_loss, one.progress.best_step) == (losses[best], best + 1)
    one.take_result()
    assert weights(one).equal(all_weights[best])


def test_best_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match="needs evaluations"):
        TuneSettings(result="best")


def test_a_signal_in_a_step_stops_behind_it_and_a_second_one_at_once(nano: ModelDirectory, tmp_path: Path) -> None:
    one, other = trainer(nano, tmp_path / "1"), trainer(nano, tmp_path / "2")
    losses = one.objective.losses

    def signalled(model: Any, batch: Any) -> Any:
        if one.progress.step == 2 and not one.stop.is_set:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(model, batch)

    one.objective.losses = signalled  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(one)
    assert signal.getsignal(signal.SIGTERM) is before
    again = trainer(nano, tmp_path / "1")
    assert again.progress.step == 3
    run(again)
    run(other)
    assert weights(again).equal(weights(other))

    twice = trainer(nano, tmp_path / "3")

    def signalled_twice(model: Any, batch: Any) -> Any:
        if twice.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return losses(model, batch)

    twice.objective.losses = signalled_twice  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(twice)
    assert trainer(nano, tmp_path / "3").progress.step == 0  # no checkpoint of a step that was cut


def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(nano: ModelDirectory, tmp_path: Path) -> None:
    one, done = trainer(nano, tmp_path, eval_every=2), []

    def stopped() -> None:
        done.append(one.progress.step)
        one.save()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.run(lambda _report: None, stopped)
    again = trainer(nano, tmp_path, eval_every=2)
    again.run(lambda _report: None, lambda: done.append(again.progress.step))
    assert done == [2, 2, 4, 6]
