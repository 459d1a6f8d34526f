"""A fault that is not the user's, such as scores that are not numbers, is one line and status 1 in every command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers.command import run
from PIL import Image
from safetensors.torch import load_file, save_file

from pocketvlm.model.hub import resolve


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give a checkpoint directory with one weight of a query projection that is not a number."""
    directory = tmp_path_factory.mktemp("damaged") / "nano"
    shutil.copytree(resolve("nano").path, directory)
    file = directory / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "language_model" in name and name.endswith("q_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    return str(directory)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_scores_that_are_not_numbers_are_one_line(
    damaged: str, picture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = run(capsys, "ask", picture, "What?", "--model", damaged)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "scores are not numbers" in err
    assert "float32" in err

    file = tmp_path / "out.jsonl"
    run(capsys, "eval", "one-word", "--count", "2", "--model", damaged, "--out", str(file))
    records = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert ["scores are not numbers" in record["error"] for record in records] == [True, True]


@pytest.mark.parametrize("interactive", [True, False])
def test_a_conversation_goes_on_after_a_lost_answer(
    interactive: bool, damaged: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["One?", "Two?", None])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: interactive, raising=False)
    monkeypatch.setattr("pocketvlm.cli.chat.read_line", lambda **_: next(lines))
    status, _, err = run(capsys, "chat", "--model", damaged)
    assert (status, err.count("scores are not numbers")) == ((0, 2) if interactive else (1, 1))
