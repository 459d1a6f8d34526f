"""The recipe of nano: interrupted training resumes to the step, and learning happens where it should."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pocketvlm.errors import ConfigError
from pocketvlm.files import lock
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.processes import Processes
from pocketvlm.training.settings import LOG
from pocketvlm.training.trainer import Report
from recipes.nano import mix, publish, train
from recipes.nano.curriculum import COMPRESSED, COMPRESSION, Share, Stage
from recipes.nano.data import Collator
from recipes.nano.initialise import start_from
from recipes.nano.logs import read_reports, read_run
from recipes.nano.run import Run, new_learner
from recipes.nano.settings import ASSETS, IMAGE, Optimiser

TOKENIZER = Tokenizer.from_directory(ASSETS)
COLLATE = Collator(TOKENIZER, IMAGE)
WORDS = (Share("words", 0, 1.0),)
SHORT = (Stage("first", WORDS, 100, alone=2),)


def made(out: Path, stages: tuple[Stage, ...] = SHORT, seed: int = 0, **options: Any) -> Run:
    out.mkdir(exist_ok=True)
    return Run(out, new_learner(seed), seed, Optimiser(), stages=stages, **options)


def train_steps(one: Run, count: int) -> list[Mapping[str, float]]:
    """Figures of the next steps."""
    figures: list[Mapping[str, float]] = []
    one.length.last = one.step + count
    one.train(lambda report: figures.append(report.figures))
    return figures


def weights(one: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in one.learner.named_parameters()}


def changed(one: Run, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in one.learner.named_parameters() if not torch.equal(p, before[name])}


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    straight = made(tmp_path / "a")
    train_steps(straight, 4)
    train_steps(made(tmp_path / "b"), 2)
    resumed = made(tmp_path / "b")
    assert resumed.step == 2
    train_steps(resumed, 2)
    assert resumed.step == straight.step == 4
    assert not changed(resumed, weights(straight))
    assert read_run(tmp_path / "a") == read_run(tmp_path / "b")


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    straight, stopped = made(tmp_path / "a"), made(tmp_path / "b", save_every=2)
    train_steps(straight, 4)

    def kill(report: Report) -> None:
        if report.step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stopped.train(kill)
    resumed = made(tmp_path / "b", save_every=2)
    assert resumed.step == 2
    train_steps(resumed, 2)
    assert not changed(resumed, weights(straight))
    lines = [json.loads(line) for line in (tmp_path / "b" / LOG).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["stage"] for line in lines if "stage" in line] == ["first"]


def test_a_change_of_stage_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.nano.course.LAG", 2)
    stages = (Stage("a", WORDS, 60, steps=1), Stage("b", WORDS, 90, rates=COMPRESSED))
    straight, stopped = made(tmp_path / "a", stages), made(tmp_path / "b", stages)
    train_steps(straight, 5)
    train_steps(stopped, 2)
    assert stopped.stage.name == "a"  # the change is due, and has not happened
    resumed = made(tmp_path / "b", stages)
    train_steps(resumed, 3)
    assert resumed.stage.name == straight.stage.name == "b"
    assert not changed(resumed, weights(straight))


def test_shares_follow_what_is_measured_after_an_interruption_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite is asked at step 2, and its scores decide what step 4 sees."""
    monkeypatch.setattr("recipes.nano.course.LAG", 2)
    measured: list[int] = []

    def measure(model: MiniCPMV, processor: Processor, processes: Processes) -> dict[str, float]:
        found = mix.measure(model, processor, processes, 2, ("one-word", "shapes", "not-there"))
        measured.append(len(found))
        return {**dict.fromkeys(found, 0.5), "words": 1.5}

    monkeypatch.setattr("recipes.nano.run.mix", SimpleNamespace(measure=measure, factors=mix.factors))
    shares = (Share("words", 0, 0.9), Share("shapes", 0, 0.1))
    stages = (Stage("a", shares, 300, measured=True),)
    straight, stopped = (made(tmp_path / name, stages, mix_every=2) for name in "ab")
    train_steps(straight, 5)
    train_steps(stopped, 3)
    resumed = made(tmp_path / "b", stages, mix_every=2)
    train_steps(resumed, 2)
    assert not changed(resumed, weights(straight))
    assert measured == [measured[0]] * 4  # at 2 and at 4, twice
    assert measured[0] > 2
    assert straight.course.mix_at(4)["words"] == 0
    lines = [json.loads(line) for line in (tmp_path / "a" / LOG).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "suite" in line] == [2, 4]


def test_parts_that_rest_do_so_after_an_interruption_too(tmp_path: Path) -> None:
    stages = (Stage("alignment", WORDS, 60, rates=COMPRESSED, learns=COMPRESSION),)
    train_steps(made(tmp_path / "run", stages), 1)
    resumed = made(tmp_path / "run", stages)
    before = weights(resumed)
    train_steps(resumed, 1)
    moved = changed(resumed, before)
    assert moved
    assert all("vit_merger" in name or name.startswith("model.merger.") for name in moved)


def test_a_run_is_continued_as_it_was_begun(tmp_path: Path) -> None:
    made(tmp_path / "run").save()
    with pytest.raises(ConfigError, match="holds a run with seed=0, not 1"):
        made(tmp_path / "run", seed=1)
    with pytest.raises(ConfigError, match="holds a run with processes=1, not 2"):
        made(tmp_path / "run", processes=Processes(0, 2))


def test_a_saved_run_is_a_whole_checkpoint(tmp_path: Path) -> None:
    import pocketvlm

    one = made(tmp_path / "run")
    train_steps(one, 1)
    loaded = dict(load_model(tmp_path / "run" / "model").named_parameters())
    for name, p in one.learner.model.named_parameters():
        assert torch.equal(p.bfloat16().float(), loaded[name]), name
    answer = pocketvlm.load(tmp_path / "run" / "model").ask(np.zeros((60, 80, 3), np.uint8), "?", max_tokens=2)
    assert answer.usage.completion_tokens <= 2


def test_a_run_can_begin_with_another_one_and_its_heads(tmp_path: Path) -> None:
    one, learner = made(tmp_path / "run"), new_learner(1)
    one.save()
    start_from(learner.model, learner.reader, tmp_path / "run", TOKENIZER)
    assert learner.reader.cells.characters.weight.equal(one.learner.reader.cells.characters.weight)


def test_a_trained_run_goes_into_the_package_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.nano.logs.REPORT_EVERY", 1)
    one = made(tmp_path / "run")
    train_steps(one, 2)
    monkeypatch.setattr(publish, "ASSETS", tmp_path)
    monkeypatch.setattr(publish, "__file__", str(tmp_path / "publish.py"))
    monkeypatch.setattr(sys, "argv", ["publish", "--run", str(tmp_path / "run")])
    publish.main()
    published = load_model(tmp_path)
    assert published.config.downsample_mode == "4x"
    assert [report["step"] for report in read_reports(tmp_path / "log.jsonl")] == [1, 2]


def test_steps_for_the_tower_alone_leave_the_decoder_alone(tmp_path: Path) -> None:
    one = made(tmp_path / "run")
    train_steps(one, 1)  # step 0: both learn
    before = weights(one)
    (figures,) = train_steps(one, 1)
    assert "answers" not in figures
    moved = changed(one, before)
    assert any(name.startswith("model.vision_tower.") for name in moved)
    assert any(name.startswith("reader.") for name in moved)
    assert not any(name.startswith("model.language_model.") for name in moved)


def test_a_tower_that_rests_learns_in_the_steps_between_alone(tmp_path: Path) -> None:
    one = made(tmp_path / "run", (dataclasses.replace(SHORT[0], tower_rests=True),))
    before = weights(one)
    (figures,) = train_steps(one, 1)
    assert "characters" in figures
    assert figures["answers"]
    moved = changed(one, before)
    assert any(name.startswith("model.language_model.") for name in moved)
    assert not any(name.startswith(("model.vision_tower.", "model.merger.", "reader.cells.")) for name in moved)
    before = weights(one)
    train_steps(one, 1)
    assert any(name.startswith("model.vision_tower.") for name in changed(one, before))


def test_the_alignment_moves_the_compression_and_nothing_else(tmp_path: Path) -> None:
    stages = (Stage("alignment", WORDS, 60, rates=COMPRESSED, learns=COMPRESSION),)
    one = made(tmp_path / "run", stages)
    before = weights(one)
    train_steps(one, 1)
    moved = changed(one, before)
    assert {name.split(".")[1] for name in moved} == {"vision_tower", "merger"}
    assert all("vit_merger" in name or name.startswith("model.merger.") for name in moved)


def test_a_run_can_stop_where_a_stage_would_begin(tmp_path: Path) -> None:
    one = made(tmp_path / "run", (Stage("a", WORDS, 60), Stage("b", WORDS, 60)))
    one.course.next, one.length.until_stage = (2, 1), "b"
    train_steps(one, 9)
    assert one.step == 2
    assert one.course.next == (2, 1)  # it has not begun


def test_a_stage_of_so_many_steps_lasts_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.nano.course.LAG", 2)
    one = made(tmp_path, (Stage("a", WORDS, 60, steps=5), Stage("b", WORDS, 60)))
    names: list[str] = []
    one.length.last = 8
    one.train(lambda _report: names.append(one.course.stages[one.course.stage].name))
    assert names == ["a"] * 5 + ["b"] * 3


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recipes.nano.train", "--processes", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_begins_with_another_one_at_a_stage(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    made(base).save()
    again = run_command("--out", str(out), "--init", str(base), "--stage", "strips", "--steps", "1")
    assert again.returncode == 1
    assert "give another one" in again.stderr
    done = run_command("--out", str(out), "--init", str(base), "--stage", "strips", "--steps", "1", "--seed", "1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    assert [line["stage"] for line in lines if "stage" in line] == ["strips"]


def test_two_do_not_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was asked to stop does so after its step: who begins again before that would lose its checkpoint."""
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--processes", "1", "--dtype", "float32"])
    with (tmp_path / "lock").open("ab") as file:
        assert lock(file)
        with pytest.raises(SystemExit, match="another process trains in"):
            train.main()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM to pass on")
def test_a_run_that_is_ended_by_kill_loses_no_step(tmp_path: Path) -> None:
    """`kill` reaches the process that was started, which passes it on to those that train."""
    command = [sys.executable, "-m", "recipes.nano.train", "--processes", "2", "--out", str(tmp_path / "run")]
    log = tmp_path / "run" / LOG
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not (log.is_file() and '"loss"' in log.read_text(encoding="utf-8")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert "stopped after a step; the same command goes on" in errors
    assert "Traceback" not in errors
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["step"]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{last:08}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--minutes", "1", "--cooldown", "9"), "not allowed with"),
        (("--stage", "strips"), "--init"),
        (("--until", "9", "--steps", "1"), "none is"),
    ],
)
def test_options_that_would_not_be_honoured_are_refused(
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["train", "--processes", "1", "--out", out, *arguments])
    with pytest.raises(SystemExit) as refused:
        train.main()
    assert refused.value.code not in (0, None)
    assert message in f"{refused.value.code} {capsys.readouterr().err}"
