"""Figures for TensorBoard and Weights & Biases, each once, also of a run that goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pocketvlm.errors import MissingExtraError
from pocketvlm.training.trackers import check_trackers, open_trackers


def test_tensorboard_draws_every_step_once_where_a_run_goes_on(tmp_path: Path) -> None:
    for first, last, value in ((1, 4, 1.0), (3, 5, 2.0)):
        (one,) = open_trackers(["tensorboard"], tmp_path, {"rank": 16}, first - 1)
        for step in range(first, last + 1):
            one.log(step, {"training/loss": value})
        one.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_weights_and_biases_gets_one_run_that_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    ended: list[bool] = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            logged.append((step, figures))

        def finish(self) -> None:
            ended.append(True)

    def init(**options: Any) -> Run:
        calls.append(options)
        return Run()

    package = ModuleType("wandb")
    package.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for step in (0, 5):
        (one,) = open_trackers(["wandb"], tmp_path, {"rank": 16}, step)
        one.log(step + 1, {"training/loss": 1.0})
        one.close()
    assert calls[0]["id"] == calls[1]["id"]
    assert calls[0]["project"] == "mine"
    assert calls[0]["config"] == {"rank": 16}
    assert logged == [(1, {"training/loss": 1.0}), (6, {"training/loss": 1.0})]
    assert ended == [True, True]


def test_an_empty_number_of_a_run_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[str] = []
    package = ModuleType("wandb")
    package.init = lambda **options: numbers.append(options["id"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    (tmp_path / "wandb.id").touch()  # what a version that wrote in place left when it was killed
    open_trackers(["wandb"], tmp_path, {}, 0)
    open_trackers(["wandb"], tmp_path, {}, 1)
    assert numbers[0]
    assert numbers[1] == numbers[0]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed"):
        check_trackers(["tensorboard", "wandb"])
