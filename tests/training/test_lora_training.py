"""Adapters that learn: scaled as asked, alone in learning, with random numbers that a run that goes on has again, and
out of the way where preferences are compared with the model before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.invariants import assert_close
from helpers.trainer import run, trainer, weights

from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.training.lora import add_lora, import_peft
from pocketvlm.training.losses import answer_losses, dpo_losses, sequence_log_probs
from pocketvlm.training.settings import TuneSettings
from pocketvlm.training.trainer import Trainer, TrainingError

LORA: dict[str, Any] = {"method": "lora", "tune": ("merger",), "rank": 4, "alpha": 12.0}


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


def move(one: Trainer) -> None:
    """Adapters that do something: as made, they add nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in one.parameters:
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 12 / math.sqrt(4))])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_made_as_asked_in_fp32_and_nothing_else_learns(
    nano: ModelDirectory, rslora: bool, scale: float, dora: bool
) -> None:
    model = load_model(nano).bfloat16()
    layers = add_lora(model, TuneSettings(**LORA, dropout=0.25, rslora=rslora, dora=dora))
    assert layers
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in learns)
    assert {p.dtype for p in learns.values()} == {torch.float32}
    for name in layers:
        layer: Any = model.get_submodule(name)
        assert isinstance(layer, import_peft().tuners.lora.LoraLayer)
        assert layer.scaling["default"] == pytest.approx(scale)
        assert layer.r["default"] == 4
        assert layer.lora_dropout["default"].p == 0.25
        assert bool(layer.lora_magnitude_vector) == dora


def test_a_run_with_dropout_that_was_killed_goes_on_to_the_same_weights_bit_by_bit(
    nano: ModelDirectory, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {**LORA, "dropout": 0.5, "steps": 4, "save_every": 2}

    def made(out: str, seed: int) -> Trainer:
        torch.manual_seed(seed)  # adapters begin at random
        return trainer(nano, tmp_path / out, **changes)

    whole, seeds, seen = made("whole", 0), [], []
    losses = whole.objective.losses

    def watched(model: Any, batch: Any) -> torch.Tensor:
        seeds.append(torch.initial_seed())
        seen.append(model.training)
        return losses(model, batch)

    whole.objective.losses = watched  # type: ignore[method-assign]
    expected = run(whole)
    assert len(set(seeds)) == 4, "steps have the same random numbers"
    assert all(seen), "dropout is off"
    run(made("killed", 0), 3)
    again = made("killed", 2)
    assert again.progress.step == 2
    assert run(again) == expected[2:]
    assert weights(again).equal(weights(whole))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_are_compared_with_the_model_before(nano: ModelDirectory, tmp_path: Path, method: str) -> None:
    changes = {**LORA, "method": method, "tune": ("decoder",), "objective": "dpo", "beta": 0.3}
    one = trainer(nano, tmp_path, **changes)
    move(one)
    items = [found for found in next(iter(one.feed.steps(0, 1, 3, 0, 1))) if isinstance(found, tuple)]
    (batch,) = one.objective.batches(items, 10**6, 10**6)
    base = load_model(nano)
    with torch.no_grad():
        old, new = (sequence_log_probs(answer_losses(model, batch), batch) for model in (base, one.model))
    assert (old - new).abs().min() > 1e-2
    expected = dpo_losses(new[0::2], new[1::2], old[0::2] - old[1::2], 0.3)
    found = one.objective.losses(one.model, batch)
    assert_close(found, expected, 1e-4)
    assert all(p.requires_grad for p in one.parameters), "nothing learns behind the comparison"
    found.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in one.parameters)
    with torch.no_grad():
        again = sequence_log_probs(answer_losses(one.model, batch), batch)
    assert_close(again, new, 1e-5)


def test_a_preference_without_a_loss_names_its_sample(nano: ModelDirectory, tmp_path: Path) -> None:
    one = trainer(nano, tmp_path, **LORA, objective="dpo")
    items = [found for found in next(iter(one.feed.steps(0, 1, 3, 0, 1))) if isinstance(found, tuple)]
    (batch,) = one.objective.batches(items, 10**6, 10**6)
    names = [one.objective.source_of(batch, i) for i in range(3)]
    assert names == batch.sources[::2]
    assert len(set(names)) == 3


def test_gradients_that_are_no_numbers_stop_the_run_before_its_weights_change(
    nano: ModelDirectory, tmp_path: Path
) -> None:
    one = trainer(nano, tmp_path, **LORA)
    before = weights(one)
    one.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"step 1: gradients are no numbers\. Its samples: noise\.jsonl:\d"):
        run(one)
    assert weights(one).equal(before)


def test_the_best_weights_are_still_known_to_a_run_that_goes_on(nano: ModelDirectory, tmp_path: Path) -> None:
    changes: dict[str, Any] = {**LORA, "method": "full", "steps": 4, "save_every": 1, "eval_every": 1}
    changes |= {"result": "best", "learning_rate": 0.1, "warmup": 0.9, "tune": ("decoder",)}
    kept: list[torch.Tensor] = []
    one = trainer(nano, tmp_path, **changes)
    one.validation = one.feed

    def evaluate() -> None:
        one.evaluate()
        kept.append(weights(one))
        if len(kept) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        one.run(lambda _report: None, evaluate)
    best = one.progress.best_step
    assert best < 3, "such a rate ruins it"
    again = trainer(nano, tmp_path, **changes)
    again.validation = again.feed
    assert (again.progress.best_step, again.progress.best_loss) == (best, one.progress.best_loss)

    def evaluate_again() -> None:
        again.evaluate()

    again.run(lambda _report: None, evaluate_again)
    again.take_result()
    assert weights(again).equal(kept[best - 1])


def test_preferred_answers_can_be_learnt_beside_the_comparison(nano: ModelDirectory, tmp_path: Path) -> None:
    """Each pair's loss grows by the mean loss of its own chosen answer, however many pairs share a batch."""
    plain = trainer(nano, tmp_path / "a", **LORA, objective="dpo")
    beside = trainer(nano, tmp_path / "b", **LORA, objective="dpo", rpo_alpha=0.7)
    items = [found for found in next(iter(plain.feed.steps(0, 1, 3, 0, 1))) if isinstance(found, tuple)]
    (batch,) = plain.objective.batches(items, 10**6, 10**6)
    with torch.no_grad():
        each = answer_losses(plain.model, batch)
        means = torch.stack([each[batch.samples == 2 * pair].mean() for pair in range(len(items))])
        expected = plain.objective.losses(plain.model, batch) + 0.7 * means
        assert_close(beside.objective.losses(beside.model, batch), expected, 1e-5)
    assert len(items) > 1
