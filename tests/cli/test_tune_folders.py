"""pocketvlm tune in folders that are not its own: nothing of others is written over, learnt or left half done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers.command import run

from pocketvlm.files import lock
from pocketvlm.training import run as running

QUICK = ("--steps", "1", "--batch-size", "2")


def samples(path: Path, count: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"query": f"Say {i}.", "response": f"It is {i}."} for i in range(count))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [("training.jsonl", QUICK), ("train.jsonl", ("--emit", "swift")), ("training.jsonl", ("--check",))],
)
def test_data_is_never_written_over(
    tmp_path: Path, name: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data = samples(tmp_path / name)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "lock").touch()  # as the folder of a run has
    before = data.read_bytes()
    status, _, err = run(capsys, "tune", str(data), "--out", str(tmp_path), *options)
    assert (status, err.count("\n")) == (2, 1)
    assert "is data, and would be written over. Name another folder by --out." in err
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    "names", [("checkpoints/epoch1.pt",), ("swift.yaml", "README.md"), ("check.html", "README.md")]
)
def test_a_project_is_no_run_for_a_name_that_both_have(
    tmp_path: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = samples(tmp_path / "a.jsonl"), tmp_path / "project"
    for name in (*names, "notes.partial"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    status, _, err = run(capsys, "tune", str(data), "--out", str(out), *QUICK)
    assert (status, "holds something else than a run" in err) == (2, True)
    assert all((out / name).read_text() == "mine" for name in (*names, "notes.partial"))


def test_a_run_among_its_data_does_not_learn_its_own_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples(tmp_path / "sub" / "a.jsonl")
    for _ in range(2):  # the second goes on with the first, which is done
        status, _, err = run(capsys, "tune", str(tmp_path), "--out", str(tmp_path / "tuned"), *QUICK)
        assert status == 0, err


@pytest.mark.parametrize("kind", ["samples", "binary", "link", "folder", "pipe"])
def test_a_log_that_is_none_is_one_line_and_stays(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = samples(tmp_path / "a.jsonl"), tmp_path / "out"
    out.mkdir()
    log = out / "training.jsonl"
    if kind == "samples":
        samples(log)
    elif kind == "binary":
        log.write_bytes(b"\xff\x00\n")
    elif kind == "link":
        (tmp_path / "other").write_text("mine\n", encoding="utf-8")
        log.symlink_to(tmp_path / "other")
    elif kind == "folder":
        log.mkdir()
    else:
        os.mkfifo(log)
    status, _, err = run(capsys, "tune", str(data), "--out", str(out), *QUICK)
    assert (status, err.count("\n")) == (2, 1)
    assert "is no log of a run" in err or "training.jsonl cannot be written: it is a" in err
    if kind == "link":
        assert (tmp_path / "other").read_text(encoding="utf-8") == "mine\n"


def test_two_runs_never_write_into_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PATIENCE", 0.3)
    data, out = samples(tmp_path / "a.jsonl"), tmp_path / "out"
    half = out / "adapter_model.safetensors.0123.partial"
    (out / "checkpoints").mkdir(parents=True)
    half.touch()
    with (out / "checkpoints" / "lock").open("ab") as file:
        assert lock(file)
        status, _, err = run(capsys, "tune", str(data), "--out", str(out), *QUICK)
        assert (status, half.exists()) == (2, True)
        assert "is being written by another run. Wait for it, or name another folder." in err
    status, _, err = run(capsys, "tune", str(data), "--out", str(out), *QUICK)
    assert (status, half.exists()) == (0, False), err


@pytest.mark.parametrize("options", [QUICK, ("--check",), ("--emit", "swift")])
def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(_self: Path, *_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    data = samples(tmp_path / "a.jsonl")
    monkeypatch.setattr(Path, "mkdir", read_only)
    status, _, err = run(capsys, "tune", str(data), "--out", str(tmp_path / "out"), *options)
    assert (status, err.count("\n")) == (2, 1)
    assert "Read-only file system" in err
