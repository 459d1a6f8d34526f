"""Bundles are made without PyTorch, and are those that the loaded model would make, to the last byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketvlm.bundle import PRESETS, Operators
from pocketvlm.config import ModelConfig
from pocketvlm.export.onnx import bundle
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.export.onnx.decoder import _rounded
from pocketvlm.export.onnx.pieces import Half, as_fp32
from pocketvlm.export.onnx.vision import MERGER_EPS
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.model_weights import ModelWeights
from pocketvlm.model.vision.merger import LAYER_NORM_EPS
from pocketvlm.model.weights import StoredWeights

WITHOUT_TORCH = """
import sys
from pathlib import Path
from helpers.without_torch import OutOfReach
sys.meta_path.insert(0, OutOfReach())
from pocketvlm.bundle import PRESETS
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.export.onnx.product import int8_product
from pocketvlm.model.hub import resolve
write_bundle(resolve("nano"), Path(sys.argv[1]), PRESETS[sys.argv[2]], operators=sys.argv[3])
assert len(int8_product(32, 8)) > 256
print("torch" in sys.modules)
"""


@pytest.fixture
def from_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`write_bundle` of the loaded model, as for one with an adapter."""

    def write(directory: ModelDirectory, *arguments: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bundle, "_weights", lambda directory, _: ModelWeights(load_model(directory)))
            write_bundle(directory, *arguments)

    return write


def same_files(one: Path, other: Path) -> None:
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())
    assert {"decoder.data", "vision.data"} <= {file.name for file in one.iterdir()}
    assert [f.name for f in one.iterdir() if f.read_bytes() != (other / f.name).read_bytes()] == []


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("model", ["tiny", "nano"])
def test_stored_weights_make_the_bundle_of_the_loaded_model(
    model: str,
    quantization: str,
    operators: Operators,
    seeded_checkpoint: Callable[[int], Path],
    from_model: Callable[..., None],
    tmp_path: Path,
) -> None:
    directory = resolve(seeded_checkpoint(0) if model == "tiny" else "nano")
    for write, out in ((write_bundle, tmp_path / "stored"), (from_model, tmp_path / "loaded")):
        write(directory, out, PRESETS[quantization], None, operators)
    same_files(tmp_path / "stored", tmp_path / "loaded")


def test_so_do_those_of_an_untied_head_in_bfloat16(
    seeded_checkpoint: Callable[[int], Path], from_model: Callable[..., None], tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "mine"))
    config = json.loads((mine / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (mine / "config.json").write_text(json.dumps(config))
    tensors = load_file(mine / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(tensors["model.language_model.embed_tokens.weight"].shape)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, mine / "model.safetensors")
    for write, out in ((write_bundle, tmp_path / "stored"), (from_model, tmp_path / "loaded")):
        write(resolve(mine), out, PRESETS["int4"])
    same_files(tmp_path / "stored", tmp_path / "loaded")


def test_floats_that_numpy_does_not_know_are_read_by_pytorch(
    seeded_checkpoint: Callable[[int], Path], tmp_path: Path
) -> None:
    tensors = load_file(seeded_checkpoint(0) / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    for kind, change in (("narrow", torch.float8_e4m3fn), ("wide", torch.float32)):
        mine = Path(shutil.copytree(seeded_checkpoint(0), tmp_path / kind))
        tensors[name] = tensors[name].to(torch.float8_e4m3fn).to(change)
        save_file(tensors, mine / "model.safetensors")
        write_bundle(mine, tmp_path / f"{kind}-bundle", PRESETS["none"])
    assert (tmp_path / "narrow-bundle" / "decoder.data").read_bytes() == (
        tmp_path / "wide-bundle" / "decoder.data"
    ).read_bytes()


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_a_bundle_is_made_where_pytorch_is_out_of_reach(
    quantization: str, operators: Operators, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "without"), quantization, operators]
    tests = Path(__file__).parents[1]  # where `helpers` is found
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    write_bundle(resolve("nano"), tmp_path / "with", PRESETS[quantization], None, operators)
    same_files(tmp_path / "without", tmp_path / "with")


@pytest.mark.parametrize("part", [0, 1])
def test_halves_of_a_projection_are_queries_and_gates(seeded_checkpoint: Callable[[int], Path], part: int) -> None:
    weights = StoredWeights.open(resolve(seeded_checkpoint(0)))
    assert weights is not None
    name, dim = "language_model.layers.3.self_attn.q_proj.weight", weights.config.text.head_dim
    half, whole = Half(weights, name, dim, part), weights.array(name)
    expected = whole.reshape(-1, 2, dim, whole.shape[1])[:, part].reshape(-1, whole.shape[1])
    assert half.shape == expected.shape
    assert np.array_equal(as_fp32([half]), expected)
    for start, stop in ((0, 1), (dim - 1, dim + 1), (3, 2 * dim + 5), (len(expected) - 1, len(expected))):
        assert np.array_equal(half.rows(start, stop), expected[start:stop])


@pytest.mark.parametrize("config", [ModelConfig(), resolve("nano").config], ids=["published", "nano"])
def test_rotary_frequencies_are_those_of_the_model(config: ModelConfig) -> None:
    dim, theta = config.text.rotary_dim, config.text.rope_theta
    expected = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    np.testing.assert_array_max_ulp(np.float32(1) / _rounded(np.power, theta, exponent), expected.numpy(), 1)


def test_the_epsilon_that_no_configuration_has_is_that_of_the_merger() -> None:
    assert MERGER_EPS == LAYER_NORM_EPS
