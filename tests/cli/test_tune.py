"""pocketvlm tune, as people use it: files in, an adapter out, whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers.app import png
from helpers.command import run
from safetensors.torch import load_file

from pocketvlm import cli
from pocketvlm.cli.tune import ELSEWHERE
from pocketvlm.errors import CheckpointError
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.model.adapters.settings import adapter_folder
from pocketvlm.model.vlm import forget_constants
from pocketvlm.training.trainer import TrainingError

SMALL = ("--max-slice-nums", "1", "--downsample-mode", "16x")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of ms-swift with pictures beside it."""
    lines = []
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(png(60, 80, i % 2))
        answer = ("alpha", "beta 2")[i % 2]
        messages = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages, "images": [f"{i}.png"]}))
    (tmp_path / "data.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tmp_path / "data.jsonl"


def test_a_run_says_what_checks_read(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--steps", "2", "--validation", str(data), "--batch-size", "4", "--json", *SMALL)
    status, out, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), "--weights", "0.5", *options)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found.keys() == {"out", "steps", "seconds", "loss", "validation", "peak_memory_bytes"}
    assert (found["out"], found["steps"]) == (str(tmp_path / "out"), 2)
    assert found["validation"].keys() == {"loss", "exact"}
    assert found["peak_memory_bytes"] > 2**20
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    for row in ("measured with | data.jsonl", "weights of the sets | 0.5", "products in | float32"):
        assert f"| {row} |\n" in card


def command(data: Path, out: Path) -> list[str]:
    options = ["--steps", "30", "--save-every", "2", "--batch-size", "2", "--method", "full", *SMALL]
    return [sys.executable, "-m", "pocketvlm.cli", "tune", str(data), "--out", str(out), *options]


def test_a_run_that_is_killed_at_random_moments_comes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(data, whole), env=environment, check=True, capture_output=True)
    draw = random.Random(0)
    kills = 0
    while kills < 10:
        with subprocess.Popen(command(data, broken), env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            process.stderr.readline()  # of its first step
            time.sleep(draw.random() * 0.6)
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break
        kills += 1
    assert kills
    subprocess.run(command(data, broken), env=environment, check=True, capture_output=True)
    expected, found = (load_file(one / "model.safetensors") for one in (whole, broken))
    assert expected.keys() == found.keys()
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
    assert not list(broken.glob("**/*.partial"))


def test_an_interrupted_run_leaves_a_checkpoint_and_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--steps", "500", "--batch-size", "2", *SMALL]
    line = [sys.executable, "-m", "pocketvlm.cli", "tune", str(data), "--out", str(out), *options]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("step 1 of 500: loss ")
        process.terminate()
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.endswith(
        f"pocketvlm tune: stopped; {out} keeps its last checkpoint; the same command goes on from there\n"
    )
    with pytest.raises(CheckpointError, match="Its run has not come to its end"):
        adapter_folder(out)
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    assert json.loads((checkpoint / "state.json").read_text())["progress"]["step"] >= 1


def test_a_run_that_goes_on_says_so_and_its_end_names_the_data_and_what_asks_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out, options = tmp_path / "my run", ("--steps", "2", "--batch-size", "4", *SMALL)
    for expected in ([], [f"going on after step 2 of the run in {out}"]):
        caplog.clear()
        status, said, err = run(capsys, "tune", str(data), "--out", str(out), *options)
        assert status == 0, err
        assert caplog.messages == expected
        assert f"pocketvlm ask --adapter '{out}' --downsample-mode 16x --max-slice-nums 1 FILE QUESTION\n" in said
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| data | data.jsonl |\n" in card
    assert "    pocketvlm ask --adapter DIR --downsample-mode 16x --max-slice-nums 1 picture.png " in card
    assert "- `downsample_mode`: 16x\n" in card
    assert str(tmp_path) not in card


def test_rejected_answers_that_are_not_learnt_from_are_told_and_shown_where_they_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    data.write_text("".join(json.dumps({**line, "rejected_response": "no", "odd": 1}) + "\n" for line in lines))
    options = ("tune", str(data), "--check", "--out", str(tmp_path / "out"), *SMALL)
    _, said, err = run(capsys, *options)
    assert "--objective dpo learns from both" in err
    assert f"{data}: nothing is read from the columns odd" in err
    assert "[[no<|im_end|>]]" not in said
    _, said, err = run(capsys, *options, "--objective", "dpo")
    assert "--objective" not in err
    assert said.count("[[no<|im_end|>]]") == said.count("[[alpha<|im_end|>]]") + said.count("[[beta 2<|im_end|>]]") == 3


def rows(data: Path, **more: Any) -> None:
    """Write the lines again, with more in each."""
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    data.write_text("".join(json.dumps({**line, **more}) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("more", [("--steps", "1", "--batch-size", "1"), ("--emit", "swift")])
def test_columns_that_are_not_read_are_told_by_every_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    rows(data, image_path="a.png")
    held_out = data.with_name("held_out.jsonl")
    held_out.write_bytes(data.read_bytes())
    options = ("--validation", str(held_out), "--eval-count", "1", "--out", str(tmp_path / "out"), *SMALL[2:])
    status, _, err = run(capsys, "tune", str(data), *options, *more)
    assert status == 0, err
    for file in (data, held_out):
        assert err.count(f"{file}: nothing is read from the columns image_path\n") == 1
    assert "both learnt and measured with" not in err


def test_samples_that_are_cut_off_are_counted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    lines[0]["messages"][1]["content"] = lines[3]["messages"][1]["content"] = "a long answer " * 40
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "out"
    options = ("tune", str(data), "--out", str(out), "--max-tokens", "120", "--truncate", *SMALL)
    status, said, _ = run(capsys, *options, "--check")
    assert status == 0
    assert "8 samples can be learnt from, 0 cannot; 2 are cut off at their end." in said
    assert "2 are cut off at their end" in (out / "check.html").read_text(encoding="utf-8")
    assert json.loads(run(capsys, *options, "--check", "--json")[1])["cut"] == 2
    status, said, err = run(capsys, *options, "--epochs", "2", "--batch-size", "4", "--json")
    assert (status, "cut" in json.loads(said)) == (0, False)
    assert "2 samples were cut off at their end, since they are too long\n" in err
    assert json.loads((out / "training.jsonl").read_text(encoding="utf-8").splitlines()[-1])["cut"] == 2
    assert "| samples cut off at their end | 2 |" in (out / "README.md").read_text(encoding="utf-8")


def test_samples_that_are_learnt_and_measured_with_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("tune", str(data), "--check", "--out", str(tmp_path / "out"), *SMALL)
    _, _, err = run(capsys, *options, "--validation", str(data))
    assert f"8 samples of {data.resolve()} are both learnt and measured with" in err
    assert "both learnt" not in run(capsys, *options, "--split", "0.3")[2]


def test_a_folder_is_measured_with_by_its_validation_split(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held_out"
    for name, count in (("train", 8), ("validation", 2)):
        (held_out / name).mkdir(parents=True)
        lines = ('{"query": "Say.", "response": "So."}\n' for _ in range(count))
        (held_out / name / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    options = ("--check", "--json", "--out", str(tmp_path / "out"), *SMALL)
    for named, count in (("", 2), (":train", 8), (":validation,train", 2 + 8)):
        found = run(capsys, "tune", str(data), "--validation", f"{held_out}{named}", *options)
        assert json.loads(found[1])["samples"] == 8 + count
    assert "has no split 'other'" in run(capsys, "tune", str(data), "--validation", f"{held_out}:other", *options)[2]


def test_a_run_that_has_learnt_nothing_says_so_with_a_dash(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data.read_text(encoding="utf-8").splitlines()[0]
    data.write_text("\n".join([good, *['{"messages": []}'] * 40, ""]), encoding="utf-8")
    options = ("--steps", "1", "--batch-size", "1", "--out", str(tmp_path / "out"), *SMALL)
    status, said, err = run(capsys, "tune", str(data), *options)
    assert (status, "loss of the last ones –\n" in said) == (1, True), err


def test_a_dry_run_names_every_bad_line_and_shows_what_is_learnt(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}]}\n')
        file.write('{"messages": \n')
    out = tmp_path / "out"
    status, said, err = run(capsys, "tune", str(data), "--check", "--out", str(out), *SMALL)
    assert status == 1
    assert "data.jsonl:9: " in err
    assert "data.jsonl:10: " in err
    assert "[[alpha<|im_end|>]]" in said
    assert "8 samples can be learnt from, 2 cannot" in said
    page = (out / "check.html").read_text(encoding="utf-8")
    assert "<mark>alpha&lt;|im_end|&gt;</mark>" in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("https://", "http://").partition("<body>")[0]
    assert {path.name for path in out.iterdir()} == {"check.html"}


def test_bad_lines_are_skipped_counted_and_end_with_status_1_or_stop_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"messages": []}\n')
    options = ("--epochs", "1", "--batch-size", "3", *SMALL)
    status, _said, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "1"), *options)
    assert status == 1
    assert "1 samples were skipped" in err
    assert (tmp_path / "1" / "adapter_model.safetensors").exists()
    status, _, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "2"), *options, "--bad-samples", "stop")
    assert status == 2
    assert "data.jsonl:9: " in err


@pytest.mark.parametrize("harm", [b"no picture", png(60, 80, 0)[:-60]], ids=["no picture", "a truncated one"])
def test_data_whose_pictures_are_all_bad_is_one_line_before_the_model_is_loaded(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, harm: bytes
) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(harm)
    monkeypatch.setattr("pocketvlm.training.run.load_base", None)
    status, said, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), "--steps", "2", *SMALL)
    assert (status, said, err.count("\n")) == (2, "", 1)
    assert "data.jsonl:1: " in err
    assert "0.png" in err
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise TrainingError("nothing learns")

    out, options = tmp_path / "out", ("--steps", "2", "--batch-size", "4", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("pocketvlm.training.trainer.Trainer.step", fails)
        status, _, err = run(capsys, "tune", str(data), "--out", str(out), *options)
    assert (status, err.count("\n")) == (1, 1)
    assert not out.exists()
    out.mkdir()
    (out / "check.html.0123456789ab.partial").touch()  # of a run that was killed
    status, _, err = run(capsys, "tune", str(data), "--out", str(out), *options)
    assert status == 0, err
    assert not list(out.glob("**/*.partial"))


def test_a_share_of_the_samples_is_for_measuring_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--epochs", "2", "--batch-size", "6", "--split", "0.25", *SMALL)
    status, said, err = run(capsys, "tune", str(data), "--out", str(out), *options)
    assert status == 0, err
    assert "validation: loss " in said
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "loss" in line]) == 2  # of six samples that are learnt


def test_the_memory_of_a_step_is_told_by_part(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _status, said, _err = run(capsys, "tune", str(data), "--plan", "--json", "--out", str(tmp_path / "out"), *SMALL)
    found = json.loads(said)
    assert found["bytes"]["total"] == sum(size for name, size in found["bytes"].items() if name != "total")
    assert found["bytes"]["tokens"] > found["bytes"]["adapters"] > 0
    assert found["bytes"]["optimiser"] == 2 * found["bytes"]["adapters"]
    assert found["micro_tokens"] >= found["tokens"]
    assert found["samples"] == 8
    assert not (tmp_path / "out").exists()
    alone = tmp_path / "alone.jsonl"
    alone.write_text('{"query": "Say.", "response": "So."}\n', encoding="utf-8")
    _status, said, _err = run(capsys, "tune", str(alone), "--plan", "--out", str(tmp_path / "out"), *SMALL)
    assert "--micro-tokens" in said
    assert "--micro-patches" not in said  # 0 of them, which no run takes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_plan_is_made_for_a_card_that_is_elsewhere(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = tmp_path / "out", {}
    for gib in ("24", "48"):
        status, said, err = run(
            capsys, "tune", str(data), "--plan", "--memory", gib, "--json", "--out", str(out), *SMALL
        )
        assert status == 0, err
        assert err.count("the card is not here") == (not torch.cuda.is_available())
        found[gib] = json.loads(said)
        assert found[gib]["memory"] == int(gib) * 2**30
    assert found["24"]["bytes"] == found["48"]["bytes"]
    assert found["24"]["bytes"]["process"] == found["24"]["bytes"]["lost"] == 0  # of a card's memory
    assert found["48"]["samples_that_fit"] == pytest.approx(2 * found["24"]["samples_that_fit"], rel=0.1)
    for wrong, reason in (
        (("--memory", "24"), "--memory is of the card that --plan is for"),
        (("--plan", "--memory", "0"), "memory=0.0 is not"),
    ):
        status, _said, err = run(capsys, "tune", str(data), *wrong, "--out", str(out), *SMALL)
        assert status == 2
        assert reason in err


# torch reads it of tensors of its own while it traces, and hides this in a way that the suite does not see.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_plan_leaves_nothing_to_a_run_in_the_same_process(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_constants()  # else what an earlier test made would stand where the plan's would
    assert run(capsys, "tune", str(data), "--plan", *SMALL)[0] == 0
    status, _out, err = run(capsys, "tune", str(data), "--steps", "1", "--out", str(tmp_path / "out"), *SMALL)
    assert status == 0, err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "magic"), "--method: invalid choice: 'magic'"),
        (("--rank", "0"), "rank=0"),
        (("--tune", "head"), "expected some of decoder, merger"),
        (("--check", "--plan"), "are two things"),
        (("--split", "0.5", "--validation", "data.jsonl"), "both choose what to measure with"),
        (("--split", "1"), "--split=1"),
        (("--epochs", "0"), "epochs=0"),
        (("--minutes", "0"), "minutes=0"),
        (("--clip", "0"), "clip=0"),
        (("--alpha", "0"), "alpha=0"),
        (("--learning-rate", "0"), "learning-rate=0"),
        (("--epochs", "2", "--steps", "3"), "--epochs and --steps both say how long"),
        (("--method", "full", "--rank", "4"), "--rank is of LoRA"),
        (("--rpo-alpha", "1"), "--rpo-alpha is of DPO"),
        (("--beta", "0.2"), "--beta is of DPO"),
        (("--preset", "sft", "--alpha", "4"), "--alpha is of LoRA"),
        (("--steps", "two"), "--steps: invalid int value: 'two'"),
        (("--validation", "nothing.jsonl"), "nothing.jsonl"),
        (("--lr", "1e-4"), "unrecognized arguments: --lr 1e-4 (did you mean --learning-rate?"),
        (("--lora_rank", "8", "--x", "y"), "did you mean --rank?"),
        (("--batch_size", "8"), "did you mean --batch-size?"),
        (("--optimizer", "adamw"), "did you mean --optimiser?"),
        (("--learn", "1e-4"), "unrecognized arguments: --learn 1e-4 (did you mean --learning-rate?)"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    status, _said, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), *options)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_names_of_options_elsewhere_stand_for_options_here() -> None:
    parser = cli.command_parser("tune")
    known = {option for action in parser._actions for option in action.option_strings}
    assert {f"--{name}" for name in ELSEWHERE.values()} <= known
    assert not {f"--{name}" for name in ELSEWHERE} & known


@pytest.mark.parametrize(("mode", "expected"), [("16x", {"downsample_mode": "16x"}), ("random", {})])
def test_tasks_are_asked_with_the_options_of_the_run(
    mode: str, expected: dict[str, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Recorder(LocalModel):
        def __init__(self, vlm: Any, options: Any, **rest: Any) -> None:
            asked.append(dict(options))
            super().__init__(vlm, options, **rest)

    monkeypatch.setattr("pocketvlm.evaluation.answerers.LocalModel", Recorder)
    tasks = ("--eval-tasks", "one-word", "--eval-count", "1", "--steps", "1", "--batch-size", "1")
    options = ("--max-slice-nums", "1", "--downsample-mode", mode, "--out", str(tmp_path / "out"))
    assert cli.main(["tune", str(data), *tasks, *options]) == 0
    assert asked == [{"temperature": 0.0, "max_slice_nums": 1, **expected}]


def bad_line(data: Path, name: str) -> Path:
    """A file beside the data, of which the second line is bad."""
    lines = data.read_text(encoding="utf-8").splitlines()[:2]
    (data.parent / name).write_text("\n".join([lines[0], '{"messages": []}', lines[1], ""]), encoding="utf-8")
    return data.parent / name


@pytest.mark.parametrize("option", ["--validation", "--split"])
def test_a_dry_run_reads_what_is_measured_with_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    bad = bad_line(data, "held_out.jsonl")
    given = (str(data), option, str(bad)) if option == "--validation" else (str(bad), option, "0.4")
    status, out, err = run(capsys, "tune", *given, "--check", "--json", "--out", str(tmp_path / "out"), *SMALL)
    assert status == 1
    assert "held_out.jsonl:2: " in err
    assert json.loads(out)["samples"] == (10 if option == "--validation" else 2)


def test_bad_validation_samples_are_counted_and_named_in_the_log(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--steps", "1", "--validation", str(bad_line(data, "held_out.jsonl")), "--json", *SMALL)
    status, out, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), *options)
    assert status == 1, err
    assert json.loads(out)["validation"]["loss"] > 0
    last = json.loads((tmp_path / "out/training.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert list(last["bad"]) == ["held_out.jsonl:2"]
    (data.parent / "bad.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    options = ("--steps", "1", "--validation", str(data.parent / "bad.jsonl"), *SMALL)
    status, _, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "other"), *options)
    assert status == 2
    assert "bad.jsonl:1: " in err
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(os.name == "nt", reason="no groups of processes")
@pytest.mark.parametrize("who", ["all", "a worker"])
def test_a_run_with_workers_ends_in_one_line(data: Path, tmp_path: Path, who: str) -> None:
    """SIGTERM reaches all of a group, as by `timeout`; a worker is killed, as where memory runs out."""
    out = tmp_path / "out"
    options = ["--steps", "5000", "--batch-size", "2", "--workers", "2", *SMALL]
    line = [sys.executable, "-m", "pocketvlm.cli", "tune", str(data), "--out", str(out), *options]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step"):
            pass
        if who == "all":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            os.kill(psutil.Process(process.pid).children()[-1].pid, signal.SIGKILL)
        errors = process.stderr.read()
    assert "Traceback" not in errors
    if who == "all":
        assert process.returncode == 130, errors
        assert list((out / "checkpoints").iterdir())
    else:
        assert process.returncode == 1, errors
        assert "a process that reads samples ahead ended by itself" in errors


@pytest.mark.parametrize("changed", ["data", "what is measured with"])
def test_a_run_does_not_go_on_with_other_samples(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    held_out = data.with_name("held_out.jsonl")
    held_out.write_bytes(data.read_bytes())
    options = ("--steps", "1", "--validation", str(held_out), "--batch-size", "2", "--eval-count", "1", *SMALL)
    assert run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), *options)[0] == 0
    file = data if changed == "data" else held_out
    file.write_text(file.read_text(encoding="utf-8").replace("alpha", "omega"), encoding="utf-8")
    status, _, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), *options)
    assert status == 2
    assert f"contents of {'the ' * (changed == 'data')}{changed}" in err
