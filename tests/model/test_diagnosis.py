"""What people take for a checkpoint: one line that says what it is and what to do; what is left out is said once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketvlm.bundle import PRESETS, Manifest
from pocketvlm.cli import main
from pocketvlm.errors import CheckpointError, PocketVLMError
from pocketvlm.export.gguf.files import write_gguf
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.checkpoint import load_model, stored_dtype
from pocketvlm.model.hub import resolve
from pocketvlm.model.weight_files import INDEX, WEIGHTS, count_parameters

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2600856032\n"


@pytest.fixture
def directory(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.gguf", b"GGUF\x03\0\0\0", "is a GGUF file.*checkpoint that it was made from"),
        ("named-like-nothing", b"GGUF\x03\0\0\0", "is a GGUF file"),
        ("pytorch_model.bin", b"PK\x03\x04", "pickled weights.*save_pretrained"),
        ("model.pth", b"PK\x03\x04", "pickled weights"),
        ("decoder.onnx", b"\x08\x0a", "is an ONNX graph.*whole directory"),
        ("model.safetensors", b"\0" * 8, "one file of a checkpoint.*Give the directory: "),
        ("config.json", b"{}", "one file of a checkpoint"),
        ("model.safetensors.index.json", POINTER, "Git LFS pointer"),
        ("notes.txt", b"", "is a file, expected a checkpoint directory"),
    ],
)
def test_a_file_given_as_model_is_told_by_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        resolve(tmp_path / name)
    assert main(["ask", "x", "y", "--model", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def only(directory: Path, *names: str) -> None:
    for file in directory.iterdir():
        if file.name not in names:
            file.unlink()


def as_adapter(directory: Path) -> None:
    only(directory)
    content = {"base_model_name_or_path": "openbmb/MiniCPM-V-4.6", "peft_type": "LORA"}
    (directory / "adapter_config.json").write_text(json.dumps(content))
    (directory / "adapter_model.safetensors").write_bytes(b"")


def as_damaged_adapter(directory: Path) -> None:
    only(directory)
    (directory / "adapter_config.json").write_bytes(b"[" * 100_000)


def as_adapter_with_config(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text("{}")


def as_pickle(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def as_shards_without_index(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model-00001-of-00001.safetensors")


def as_missing_shards(directory: Path) -> None:
    names = {"a": WEIGHTS, "b": "model-00002-of-00003.safetensors", "c": "model-00003-of-00003.safetensors"}
    (directory / INDEX).write_text(json.dumps({"weight_map": names}))


def as_gguf(directory: Path) -> None:
    only(directory)
    (directory / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def as_gguf_with_config(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model.gguf")


def as_pointer(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(POINTER)


def as_parent(directory: Path) -> None:
    inner = directory / "inner"
    inner.mkdir()
    for file in directory.iterdir():
        if file.is_file():
            file.rename(inner / file.name)


def as_bundle(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    Manifest(PRESETS["int8"], "source", {}).write(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_adapter, "is an adapter for openbmb/MiniCPM-V-4.6, not a whole model.*--adapter"),
        (as_damaged_adapter, "is an adapter, not"),
        (as_adapter_with_config, "is an adapter, not"),
        (as_pickle, r"pickled weights only \(pytorch_model\.bin\).*save_pretrained"),
        (as_shards_without_index, "but neither model.safetensors nor"),
        (as_missing_shards, "model-00002-of-00003.safetensors does not exist: 2 of the 3 files"),
        (as_gguf, r"holds GGUF files \(model-Q4_K_M\.gguf\)"),
        (as_gguf_with_config, "holds GGUF files"),
        (as_pointer, "Git LFS pointer"),
        (as_parent, "has no config.json, but inner in it has"),
        (as_bundle, "is an ONNX bundle"),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_told_by_what_it_is(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], said: str
) -> None:
    change(directory)
    for read in (
        load_model,
        lambda path: write_gguf(path, tmp_path / "out"),
        lambda path: write_bundle(path, tmp_path / "out", PRESETS["int8"]),
    ):
        with pytest.raises(PocketVLMError, match=said) as caught:
            read(directory)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == [directory]
    assert main(["export", "onnx", str(tmp_path / "out"), "--model", str(directory)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model."])
def test_tensors_of_multi_token_prediction_are_left_out_with_one_line(
    directory: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    tensors = load_file(directory / WEIGHTS)
    plain = count_parameters(directory), load_model(directory).state_dict()
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, directory / WEIGHTS)
    assert stored_dtype(directory) == torch.bfloat16
    further = {f"{prefix}mtp.layers.0.mlp.up_proj.weight": torch.ones(3, 5), f"{prefix}mtp.norm.weight": torch.ones(5)}
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()} | further, directory / WEIGHTS)
    assert stored_dtype(directory) == torch.bfloat16
    save_file(tensors | further, directory / WEIGHTS)
    with caplog.at_level(logging.WARNING, "pocketvlm"):
        loaded = load_model(directory).state_dict()
    assert [record.getMessage() for record in caplog.records if "mtp.* tensors (2)" in record.getMessage()]
    assert len(caplog.records) == 1
    assert count_parameters(directory) == plain[0]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain[1].items())


def test_an_adapter_beside_whole_weights_is_not_passed_over_in_silence(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "adapter_config.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "pocketvlm"):
        load_model(directory)
    assert ["not applied" in record.getMessage() for record in caplog.records] == [True]
