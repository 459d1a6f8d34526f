"""Whatever is given as a path or as a model's name is used, or refused in one line with status 2, by every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import run
from PIL import Image

from pocketvlm.cli import COMMANDS

# No such user, longer than a name may be, a zero byte, nothing: each fails in another way when a path is made of it.
NAMES = ("~nosuchuser/x", "x" * 300, "a\0b", "")
CAN_WRITE: dict[str, tuple[str, ...]] = {  # command → what it needs to write a file, but for the model
    "plan": ("a.png", "--draw", "out.png"),
    "trace": ("a.png", "--prompt", "What?", "--save", "out.npz"),
    "bench": ("growth", "--plot", "out.png"),
    "batch": ("in.jsonl", "out.jsonl"),
    "eval": ("one-word", "--count", "1", "--out", "out.jsonl"),
    "export": ("onnx", "out"),
    "ask": ("a.png", "What?"),
    "chat": ("a.png",),
    "info": (),
    "serve": ("--port", "0"),
    "mcp": (),
    "tune": ("in.jsonl",),
    "read": ("a.png", "--out", "text"),
    "extract": ("a.png", "--schema", "a: string", "--out", "rows.csv"),
}
# Command lines with a place for a path.
PATHS: list[tuple[str, ...]] = [
    ("ask", "PATH", "What?"),
    ("ask", "a.png", "What?", "--json-schema", "PATH"),
    ("ask", "a.png", "What?", "--grammar", "PATH"),
    ("chat", "PATH"),
    ("plan", "PATH"),
    ("plan", "PATH", "--draw", "out.png"),
    ("plan", "a.png", "--draw", "PATH"),
    ("trace", "PATH", "--prompt", "What?"),
    ("trace", "a.png", "--prompt", "What?", "--save", "PATH"),
    ("batch", "PATH", "out.jsonl"),
    ("batch", "in.jsonl", "PATH"),
    ("read", "PATH", "--out", "text"),
    ("read", "a.png", "--out", "text", "--prompts", "PATH"),
    ("read", "--list", "PATH", "--out", "text"),
    ("extract", "PATH", "--schema", "a: string", "--out", "rows.csv"),
    ("extract", "a.png", "--schema", "PATH", "--out", "rows.csv"),
    ("extract", "a.png", "--schema", "a: string", "--out", "PATH"),
    ("tune", "PATH"),
    ("tune", "in.jsonl", "--out", "PATH"),
    ("tune", "in.jsonl", "--validation", "PATH"),
    ("tune", "in.jsonl", "--media-dir", "PATH"),
    ("bench", "growth", "--plot", "PATH"),
    ("bench", "offline", "--against", "llama.cpp", "--gguf", "PATH"),
    ("bench", "offline", "--against", "llama.cpp", "--gguf", "a.png", "--mmproj", "PATH"),
    ("eval", "--set", "docvqa=PATH"),
    ("serve", "--port", "0", "--config", "PATH"),
    ("eval", "one-word", "--count", "1", "--out", "PATH"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: a picture and a file of requests that is none."""
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "in.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> None:
    before = sorted(folder.rglob("*"))
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), (arguments, status, out, err)
    assert err.startswith(f"pocketvlm {arguments[0]}: "), (arguments, err)
    assert len(err) < 400
    assert sorted(folder.rglob("*")) == before, "something half-written was left"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_no_model_is_refused_by_every_command(
    capsys: pytest.CaptureFixture[str], folder: Path, command: str, name: str
) -> None:
    refuse(capsys, folder, command, *CAN_WRITE[command], "--model", name)


@pytest.mark.parametrize("arguments", PATHS, ids=" ".join)
def test_a_path_that_cannot_be_one_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: tuple[str, ...]
) -> None:
    for name in NAMES:
        refuse(capsys, folder, *(argument.replace("PATH", name) for argument in arguments))


@pytest.mark.parametrize("name", NAMES[1:])  # "~nosuchuser/x" can be made
def test_a_directory_that_cannot_be_made_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, name: str
) -> None:
    refuse(capsys, folder, "export", "onnx", name)
