"""Weights that are read by rows: those of the loaded model to the bit, a few at a time, with the same complaints."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_models import CONFIG
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pocketvlm.config import ModelConfig
from pocketvlm.errors import CheckpointError, MissingExtraError
from pocketvlm.model import weights as module
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.model_weights import ModelWeights
from pocketvlm.model.names import PATCH_EMBEDDING, published_name, published_shape
from pocketvlm.model.parameter_shapes import parameter_shapes
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.model.weight_files import INDEX, WEIGHTS, find_parameters, weight_files
from pocketvlm.model.weights import StoredWeights

TABLE = "language_model.embed_tokens.weight"


@pytest.fixture
def directory(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own, to break."""
    return Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "checkpoint"))


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def untied(config: ModelConfig) -> ModelConfig:
    return replace(config, text=replace(config.text, tie_word_embeddings=False))


def opened(directory: Path) -> StoredWeights:
    weights = StoredWeights.open(ModelDirectory.read(directory))
    assert weights is not None
    return weights


def same_as_loaded(directory: Path) -> None:
    stored, loaded = opened(directory), ModelWeights(load_model(directory))
    assert stored.config == loaded.config
    assert (stored.pixel_mean, stored.pixel_std) == (loaded.pixel_mean, loaded.pixel_std)
    for name in parameter_shapes(stored.config):
        assert stored.shape(name) == loaded.shape(name)
        whole = stored.array(name)
        assert (whole.dtype, whole.shape, whole.flags.c_contiguous) == (np.float32, stored.shape(name), True)
        assert whole.tobytes() == loaded.array(name).tobytes(), name
        half = len(whole) // 2
        for start, stop in ((0, half), (half, len(whole)), (half, half + 1)):
            rows = whole[start:stop].tobytes()
            assert stored.rows(name, start, stop).tobytes() == loaded.rows(name, start, stop).tobytes() == rows, name


@pytest.mark.parametrize("config", [CONFIG, untied(CONFIG), ModelConfig(), untied(ModelConfig())], ids=range(4))
def test_the_configuration_knows_every_parameter(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = MiniCPMV(config)
    assert list(parameter_shapes(config).items()) == [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def test_published_shapes_are_those_in_the_file() -> None:
    nano = resolve("nano")
    with safe_open(nano.path / WEIGHTS, framework="np") as file:
        for ours, shape in parameter_shapes(nano.config).items():
            stored = tuple(file.get_slice(published_name(ours)).get_shape())
            assert stored == published_shape(ours, shape, nano.config)
            assert (stored != shape) == (ours == PATCH_EMBEDDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_are_those_of_the_loaded_model_to_the_bit(directory: Path, dtype: torch.dtype) -> None:
    rewrite(directory, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    same_as_loaded(directory)


def test_an_untied_head_and_shards(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / WEIGHTS)
    tensors["lm_head.weight"] = tensors[published_name(TABLE)] + 1
    names, weight_map = sorted(tensors), {}
    for i in range(3):
        weight_map |= dict.fromkeys(names[i::3], f"{i}.safetensors")
        save_file({name: tensors[name] for name in names[i::3]}, directory / f"{i}.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (directory / WEIGHTS).unlink()
    same_as_loaded(directory)
    assert np.array_equal(
        opened(directory).array("language_model.lm_head.weight"), tensors["lm_head.weight"].float().numpy()
    )


def test_bits_that_are_no_numbers_stay(directory: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40])
    rewrite(
        directory,
        lambda tensors: tensors.update(
            {n: torch.cat([odd, t.flatten()[5:]]).view(t.shape).bfloat16() for n, t in tensors.items() if t.numel() > 5}
        ),
    )
    same_as_loaded(directory)


def test_a_map_is_renewed_before_it_grows(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def counted(file: Path, **options: str) -> object:
        made.append(file)
        return safe_open(file, **options)

    monkeypatch.setattr(module, "safe_open", counted)
    stored = opened(directory)
    for _ in range(10):
        stored.array(TABLE)
    assert len(made) == 1
    size = stored.array(TABLE).nbytes
    monkeypatch.setattr(module, "REMAP_BYTES", 2 * size)
    for _ in range(10):
        stored.array(TABLE)
    assert 5 <= len(made) <= 6


@pytest.mark.parametrize("rows", [(0, 10**6), (10**6, 10**6 + 1)])
def test_rows_that_are_not_there_are_refused(directory: Path, rows: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError):
        opened(directory).rows(TABLE, *rows)


def test_a_file_that_changes_or_goes_away_is_one_line(directory: Path, seeded_checkpoint: Callable) -> None:
    stored = opened(directory)
    rewrite(directory, lambda tensors: tensors.update({published_name(TABLE): torch.zeros(300, 7)}))
    with pytest.raises(CheckpointError, match="was written to while it was read"):
        stored.rows(TABLE, 0, 5)
    stored = opened(Path(shutil.copytree(seeded_checkpoint(0), directory.with_name("other"))))
    (directory.with_name("other") / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        stored.rows(TABLE, 0, 5)


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.vision_tower.post_layernorm.bias"]
    tensors["model.language_model.layers.0.linear_attn.A_log"] = torch.zeros(7)
    tensors["model.other.weight"] = torch.zeros(2)
    tensors["model.language_model.norm.weight"] = tensors["model.language_model.norm.weight"].to(torch.int8)


def test_complaints_are_those_of_the_loaded_model(directory: Path) -> None:
    rewrite(directory, spoil)
    said = []
    for read in (load_model, opened):
        with pytest.raises(CheckpointError) as error:
            read(directory)
        said.append(str(error.value))
    assert said[0] == said[1]
    for part in ("1 missing", "1 unexpected", "1 of another shape", "1 not of floating point", "(int8)"):
        assert part in said[0]


@pytest.mark.parametrize("size", [0, 100, -1])
def test_truncated_weights_are_refused(directory: Path, size: int) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:size])
    with pytest.raises(CheckpointError, match="truncated"):
        opened(directory)


def test_floats_that_numpy_does_not_know_are_left_to_others(directory: Path) -> None:
    name = published_name(TABLE)
    rewrite(directory, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    assert StoredWeights.open(ModelDirectory.read(directory)) is None


def test_what_may_be_lacking_is_not_missed(directory: Path) -> None:
    rewrite(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "vit_merger" in name])
    config, files = ModelDirectory.read(directory).config, weight_files(directory)
    found = find_parameters(directory, config, files, "vision_tower.vit_merger.")
    left = [name for name in parameter_shapes(config) if name not in found]
    assert left
    assert all(name.startswith("vision_tower.vit_merger.") for name in left)
    with pytest.raises(CheckpointError, match="missing"):
        find_parameters(directory, config, files, "vision_tower.layers.")


def test_where_nothing_knows_bfloat16_the_extra_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtraError, match=r"pocketvlm\[onnx\]"):
        opened(directory)
