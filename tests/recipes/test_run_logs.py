"""The log of a run, its reports and its curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.nano import curves
from recipes.nano.logs import Reports, blend, read_reports, read_run


@settings(max_examples=30)
@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_moving_averages_stay_between_the_extremes(values: list[float]) -> None:
    means: dict[str, float] = {}
    for value in values:
        blend(means, {"loss": value, "tasks/a": value})
    for mean in means.values():
        assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_reports_say_what_happened_since_the_last_one() -> None:
    reports = Reports()
    assert reports.add({"settings": {"learning_rate": 0.01}}) is None
    assert reports.add({"step": 1, "stage": "tower"}) is None
    for step in range(1, 51):
        figures = {"characters": 2.0, "samples": 3, "tasks/words": 1.0}
        made = reports.add({"step": step, "loss": 1.0, "seconds": 2.0 * step, "rate": 0.005, "figures": figures})
        assert (made is not None) == (step in (25, 50))
    assert made == {
        "step": 50,
        "stage": "tower",
        "seconds": 100,
        "rate": 0.5,
        "characters": 2.0,
        "samples_s": 1.5,
        "tasks": {"words": 1.0},
    }


def test_a_log_that_went_back_to_a_checkpoint_counts_once(tmp_path: Path) -> None:
    lines = [(25, 10), (50, 20), (75, 30), (50, 21), (75, 31)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}, "seconds": {seconds}}}\n' for step, seconds in lines))
    assert [(line["step"], line["seconds"]) for line in read_reports(path)] == [(25, 10), (50, 21), (75, 31)]


def test_runs_that_follow_each_other_in_a_log_are_counted_on(tmp_path: Path) -> None:
    lines = [(25, 10), (50, 20), (25, 8), (50, 16), (75, 24), (75, 25)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}, "seconds": {seconds}}}\n' for step, seconds in lines))
    reports = [(line["step"], line["seconds"]) for line in read_reports(path)]
    assert reports == [(25, 10), (50, 20), (25, 28), (50, 36), (75, 45)]


def test_curves_are_drawn_from_a_log(tmp_path: Path) -> None:
    from PIL import Image

    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 25, "stage": "a", "seconds": 10, "characters": 3.0, "rate": 0.1}\n'
        '{"step": 50, "stage": "b", "seconds": 20, "characters": 2.0, "answers": 4.0, "tasks": {"words": 4}}\n'
    )
    curves.draw(read_run(tmp_path), tmp_path / "curves.png")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5
