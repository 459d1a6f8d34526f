"""What both exports have in common: a new directory, whole or not there, of a checkpoint that stood still meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketvlm.bundle import PRESETS, Manifest
from pocketvlm.cli import main
from pocketvlm.errors import CheckpointError, ConfigError, OutputError
from pocketvlm.export.gguf.files import write_gguf
from pocketvlm.export.new_directory import new_directory
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.fingerprint import fingerprint

FORMATS = ("onnx", "gguf")


@pytest.fixture
def checkpoint(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "model"))


def export(form: str, out: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, the line that was said)."""
    status = main(["export", form, str(out), "--model", str(model)])
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return status, said


def fill(out: Path) -> None:
    with new_directory(out) as partial:
        (partial / "file").write_text("new")


def test_the_working_directory_is_no_new_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place would be taken by another of its name, and whoever stands in it would see nothing."""
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path):
        with pytest.raises(ConfigError, match="is the working directory"):
            fill(out)
    assert list(tmp_path.iterdir()) == []
    fill(Path("new"))
    assert (tmp_path / "new" / "file").is_file()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("changed", ["model.safetensors", "chat_template.jinja", "preprocessor_config.json"])
def test_a_checkpoint_that_changes_meanwhile_is_not_exported(
    checkpoint: Path, tmp_path: Path, seeded_checkpoint: Callable[[int], Path], form: str, changed: str
) -> None:
    def change(done: int, _: int) -> None:
        if done > 500:  # the weights have been read, and some are written
            shutil.copyfile(seeded_checkpoint(1) / changed, checkpoint / changed)
            with (checkpoint / changed).open("ab") as file:
                file.write(b" " if changed != "model.safetensors" else b"")

    def write() -> None:
        if form == "onnx":
            write_bundle(checkpoint, tmp_path / "out", PRESETS["int8"], change)
        else:
            write_gguf(checkpoint, tmp_path / "out", progress=change)

    with pytest.raises(CheckpointError, match="was written to while it was read") as error:
        write()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_that_changed_before_its_export_is_noticed(
    checkpoint: Path, tmp_path: Path, seeded_checkpoint: Callable[[int], Path]
) -> None:
    directory = ModelDirectory.read(checkpoint)
    known = directory.fingerprint
    shutil.copyfile(seeded_checkpoint(1) / "model.safetensors", checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="was written to"):
        write_bundle(directory, tmp_path / "out", PRESETS["int8"])
    manifest = write_bundle(ModelDirectory.read(checkpoint), tmp_path / "out", PRESETS["int8"])
    assert manifest == Manifest.read(tmp_path / "out")
    assert manifest.source == fingerprint(checkpoint) != known


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_no_checkpoint_is_told_before_anything_is_made(
    checkpoint: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(checkpoint, tmp_path / "bundle", PRESETS["int8"])
    files = write_gguf(checkpoint, tmp_path / "gguf")
    before = sorted(tmp_path.rglob("*"))
    for model, said in (
        (tmp_path / "bundle", "is an ONNX bundle, which holds no weights of a checkpoint"),
        (tmp_path / "bundle" / "decoder.onnx", "is an ONNX graph, expected a model directory"),
        (tmp_path / "gguf", "holds GGUF files"),
        (files.model, "is a GGUF file, expected a checkpoint directory"),
    ):
        status, line = export(form, tmp_path / "new" / "out", model, capsys)
        assert (status, said in line) == (2, True), line
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", FORMATS)
def test_a_place_where_nothing_can_be_made_is_wrong_usage(
    checkpoint: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out", tmp_path / ("x" * 300) / "out"):
        status, line = export(form, out, checkpoint, capsys)
        assert (status, "cannot be made (" in line) == (2, True), line
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", checkpoint]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_ends_with_one_as_in_every_command(
    checkpoint: Path,
    tmp_path: Path,
    form: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pocketvlm.export.onnx.bundle._write_graphs", full)
    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    status, line = export(form, tmp_path / "deep" / "out", checkpoint, capsys)
    assert status == 1
    assert line == f"pocketvlm export: {tmp_path / 'deep' / 'out'} cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == [checkpoint]
    monkeypatch.setattr("tempfile.mkdtemp", full)
    assert export(form, tmp_path / "out", checkpoint, capsys)[0] == 1


def test_parents_are_made_and_go_where_nothing_came_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), new_directory(tmp_path / "mine" / "a" / "b" / "out"):
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    fill(tmp_path / "mine" / "a" / "b" / "out")
    assert (tmp_path / "mine" / "a" / "b" / "out" / "file").read_text() == "new"


def test_a_file_that_cannot_be_read_is_not_called_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.json: No such file") as error, new_directory(tmp_path / "out"):
        shutil.copyfile(tmp_path / "missing.json", tmp_path / "x")
    assert "out" not in str(error.value).removeprefix(str(tmp_path))
    with pytest.raises(OutputError, match="out cannot be written"), new_directory(tmp_path / "out") as partial:
        (partial / "a" / "b").write_text("")


def test_names_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory by any name, but for the one that somebody is in, and names as long as they may be."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link")
    assert (tmp_path / "real" / "file").exists()
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to("later")
    fill(tmp_path / "dangling")
    assert (tmp_path / "later" / "file").exists()
    fill(tmp_path / ("é" * 127))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="is the working directory"):
        fill(Path())
    for name in ("a\0b", "y" * 256):
        with pytest.raises(ConfigError, match="cannot be made"):
            fill(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "dangling", "later", "here", "é" * 127}
