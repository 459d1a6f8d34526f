"""The loop: the same steps however they are cut and whenever they are interrupted; nothing is skipped in silence."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer import Samples, run, trainer, weights
from helpers.training import sample

from pocketvlm.errors import ConfigError, EngineError, PromptError
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.training.data.order import endless_order
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.feed import watched_workers
from pocketvlm.training.parts import linear_layers, part_of
from pocketvlm.training.processes import Processes
from pocketvlm.training.settings import TuneSettings, factor
from pocketvlm.training.trainer import Trainer, TrainingError


def endless_places(one: Trainer) -> list[int]:
    """The samples of the first steps of one."""
    return list(itertools.islice(endless_order(one.feed.samples, one.settings.seed), 4))


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_by_bit(nano: ModelDirectory, tmp_path: Path) -> None:
    whole = trainer(nano, tmp_path / "whole")
    losses = run(whole)
    assert len(losses) == 6
    for killed_after in (1, 4, 5):
        out = tmp_path / str(killed_after)
        run(trainer(nano, out, save_every=2), killed_after)
        again = trainer(nano, out, save_every=2)
        assert again.progress.step == (killed_after - 1) // 2 * 2
        assert run(again) == losses[(killed_after - 1) // 2 * 2 :]
        assert weights(again).equal(weights(whole))


def test_a_step_is_the_same_in_one_batch_and_in_many(nano: ModelDirectory, tmp_path: Path) -> None:
    one, many = trainer(nano, tmp_path / "1", clip=1e-3), trainer(nano, tmp_path / "2", clip=1e-3, micro_tokens=16)
    assert run(one) == pytest.approx(run(many), rel=1e-4)
    moved = (weights(one) - weights(trainer(nano, tmp_path / "3"))).abs().max()
    assert (weights(one) - weights(many)).abs().max() < 0.05 * moved


def test_a_loss_falls_on_what_is_learnt(nano: ModelDirectory, tmp_path: Path) -> None:
    losses = run(trainer(nano, tmp_path, steps=12, warmup=0.0))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_preferences_widen(nano: ModelDirectory, tmp_path: Path) -> None:
    losses = run(trainer(nano, tmp_path, objective="dpo", steps=8, warmup=0.0))
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: the model is still the reference
    assert losses[-1] < 0.5


def test_only_the_parts_that_were_named_change(nano: ModelDirectory, tmp_path: Path) -> None:
    before = dict(load_model(nano).named_parameters())
    one = trainer(nano, tmp_path, steps=2, tune=("merger", "compression"))
    run(one)
    changed = {name for name, p in one.model.named_parameters() if not p.equal(before[name])}
    assert changed
    assert {part_of(name) for name in changed} == {"merger", "compression"}


def test_adapters_stand_beside_every_linear_layer_of_attention_linear_attention_and_mlps(nano: ModelDirectory) -> None:
    layers = set(linear_layers(load_model(nano), ("decoder",)))
    ends = {name.rpartition(".")[2] for name in layers}
    linear = {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}
    assert ends == linear | {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(part_of(name) == "decoder" for name in layers)


def test_bad_samples_are_named_and_counted_or_stop_the_run(
    nano: ModelDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = Samples(8, bad=(3, 5))
    one = trainer(nano, tmp_path / "1", samples, steps=4)
    with caplog.at_level(logging.WARNING):
        run(one)
    assert set(one.progress.bad) == {"noise.jsonl:3", "noise.jsonl:5"}
    assert caplog.text.count("noise.jsonl:3: it is bad") == 1
    with pytest.raises(SampleError, match=r"noise.jsonl:\d: it is bad"):
        run(trainer(nano, tmp_path / "2", samples, bad_samples="stop"))
    with pytest.raises(TrainingError, match="no sample that anything can be learnt from"):
        run(trainer(nano, tmp_path / "3", Samples(4, bad=range(4))))


@pytest.mark.parametrize("first", [True, False])
def test_a_step_of_bad_samples_alone_changes_nothing_and_the_run_goes_on(
    nano: ModelDirectory, tmp_path: Path, first: bool
) -> None:
    order = endless_places(trainer(nano, tmp_path / "0", Samples(4), batch_size=1))
    one = trainer(nano, tmp_path / "1", Samples(4, bad=[order[0 if first else 1]]), batch_size=1, steps=4, save_every=1)
    reports: list[int] = []
    moved = [weights(one)]

    def on_step(report: Any) -> None:
        reports.append(report.step)
        moved.append(weights(one))

    one.run(on_step, lambda: None)
    assert reports == ([2, 3, 4] if first else [1, 3, 4])
    assert one.progress.step == 4
    assert len(one.progress.bad) == 1
    assert not any(a.equal(b) for a, b in itertools.pairwise(moved))


def test_bad_validation_samples_are_named_and_counted_or_stop_the_run(
    nano: ModelDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(out: Path, bad: list[int], **changes: Any) -> Any:
        one = trainer(nano, out, **changes)
        one.validation = trainer(nano, out / "v", Samples(2, bad=bad)).feed
        return one

    one = measured(tmp_path / "1", [1])
    with caplog.at_level(logging.WARNING):
        found = [one.evaluate(), one.evaluate()]
    assert found[0] == found[1] == measured(tmp_path / "2", [1]).evaluate()
    assert caplog.text.count("noise.jsonl:1: it is bad") == 2  # once a run
    assert set(one.progress.bad) == {"noise.jsonl:1"}
    with pytest.raises(SampleError, match="it is bad"):
        measured(tmp_path / "3", [1], bad_samples="stop").evaluate()
    with pytest.raises(TrainingError, match="no validation sample"):
        measured(tmp_path / "4", [0, 1]).evaluate()


def test_a_loss_that_is_no_number_names_its_sample(nano: ModelDirectory, tmp_path: Path) -> None:
    one = trainer(nano, tmp_path)
    losses = one.objective.losses

    def broken(model: Any, batch: Any) -> torch.Tensor:
        found = losses(model, batch)
        return torch.where(batch.samples == 1, torch.nan, found)

    one.objective.losses = broken  # type: ignore[method-assign]
    expected = next(one.feed.steps(0, 1, 4, 0, 1))[1][0].source
    with pytest.raises(TrainingError, match=f"step 1: the loss of {expected} is no number"):
        run(one)


def test_a_worker_that_was_killed_is_one_line(nano: ModelDirectory, tmp_path: Path) -> None:
    one = trainer(nano, tmp_path, steps=200)
    one.feed.workers = 1  # type: ignore[attr-defined]

    def kill(_report: Any) -> None:
        (worker,) = multiprocessing.active_children()
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    with pytest.raises(EngineError, match=r"ended by itself.*The same command goes on"):
        one.run(kill, lambda: None)
    if hasattr(signal, "SIGCHLD"):  # the end of further workers interrupts nothing
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.parametrize(("text", "told"), [("DataLoader worker (pid 1) is killed", 0), ("another fault", 1)])
def test_a_killed_worker_is_not_told_at_the_end_of_an_object(
    monkeypatch: pytest.MonkeyPatch, text: str, told: int
) -> None:
    class Ends:
        def __del__(self) -> None:
            raise RuntimeError(text)

    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with watched_workers():
        Ends()
    assert len(seen) == told


def test_a_folder_of_another_run_is_refused(nano: ModelDirectory, tmp_path: Path) -> None:
    run(trainer(nano, tmp_path, save_every=1), 3)
    with pytest.raises(ConfigError, match=r"holds a run with learning_rate=0.001, not 0.5"):
        trainer(nano, tmp_path, learning_rate=0.5)
    with pytest.raises(ConfigError, match="holds a run with samples=9, not 4"):
        trainer(nano, tmp_path, Samples(4))
    assert trainer(nano, tmp_path, micro_tokens=17).progress.step == 2


def test_processes_share_the_samples_of_a_step(nano: ModelDirectory, tmp_path: Path) -> None:
    feed = trainer(nano, tmp_path).feed
    (alone,) = feed.steps(3, 1, 4, 0, 1)
    shares = [next(iter(feed.steps(3, 1, 4, rank, 2))) for rank in range(2)]
    sources = [[one[0].source for one in share if not isinstance(one, SampleError)] for share in (alone, *shares)]
    assert sorted(sources[1] + sources[2]) == sorted(sources[0])
    assert len(sources[1]) == len(sources[2]) == 2
    assert Processes().total(3.0) == 3.0


def test_rates_rise_and_fall_to_zero() -> None:
    rates = [factor(step, 100, 0.1) for step in range(100)]
    assert max(rates) == rates[10] == 1
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.001


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong in ({"method": "all"}, {"tune": ("head",)}, {"tune": ()}, {"method": "full", "dora": True}, {"rank": 0}):
        with pytest.raises(ConfigError):
            TuneSettings(**wrong)
    for wrong in ({"minutes": 0.0}, {"epochs": 0.0}):  # which would be an epoch, or a step
        with pytest.raises(ConfigError):
            TuneSettings(**wrong)


def test_a_run_whose_first_samples_have_no_picture_waits_for_one_that_has(nano: ModelDirectory, tmp_path: Path) -> None:
    """The merger alone learns nothing from text; the seed's order decides whether that comes first."""
    texts = [sample("No.", pictures=0, seed=seed) for seed in range(1, 9)]
    given = {"tune": ("merger",), "batch_size": 1, "steps": 9}
    first = endless_places(trainer(nano, tmp_path / "order", [*texts, texts[0]], **given))[0]
    mixed = [sample("A cat.") if place != first else one for place, one in enumerate([*texts, texts[0]])]
    before = weights(trainer(nano, tmp_path / "before", mixed, **given))
    learnt = trainer(nano, tmp_path / "mixed", mixed, **given)
    assert len(run(learnt)) == 9
    assert not weights(learnt).equal(before)
    for count, name in ((8, "all"), (3, "few")):  # a whole pass; the last step of a run that is shorter
        nothing = trainer(nano, tmp_path / name, texts, **{**given, "steps": count})
        with pytest.raises(PromptError, match="nothing of the model would learn"):
            run(nothing)
