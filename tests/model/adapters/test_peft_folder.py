"""Folders of adapters: what is right is read, and what is wrong is one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import ALL, random_adapter, write_random_adapter
from helpers.tiny_models import CONFIG
from safetensors.torch import load_file, save_file

from pocketvlm.errors import PocketVLMError
from pocketvlm.model.adapters.lora import Adapter
from pocketvlm.model.adapters.peft_folder import read_adapter
from pocketvlm.model.adapters.write import write_adapter

FIRST = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_adapter(tmp_path / "adapter", CONFIG, 1, ALL)


def change(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def change_tensors(folder: Path, how: Callable[[Tensors], Tensors]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = how({key: tensor.clone() for key, tensor in load_file(file).items()})
    file.unlink()
    save_file(tensors, file)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.updates.keys() == other.updates.keys()
    for name, update in one.updates.items():
        theirs = other.updates[name]
        assert update.scale == pytest.approx(theirs.scale)
        assert torch.equal(update.a_RK, theirs.a_RK)
        assert torch.equal(update.b_NR, theirs.b_NR)
        assert (update.magnitude_N is None) == (theirs.magnitude_N is None)
        assert update.magnitude_N is None or torch.equal(update.magnitude_N, theirs.magnitude_N)


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, dora: bool) -> None:
    adapter = random_adapter(CONFIG, 1, "", dora=dora)
    write_adapter(adapter, tmp_path, CONFIG)
    assert_same(read_adapter(tmp_path, CONFIG), adapter)


@pytest.mark.parametrize(
    ("published", "other"),
    [
        ("model.language_model.", "language_model.model."),
        ("model.language_model.", "model.language_model.model."),
        ("model.language_model.", "language_model."),
        ("model.language_model.", "model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.merger.", "merger."),
        ("base_model.model.", ""),
        (".weight", ".default.weight"),
    ],
)
def test_names_of_other_classes_and_versions_mean_the_same_layers(folder: Path, published: str, other: str) -> None:
    expected = read_adapter(folder, CONFIG)
    change_tensors(folder, lambda tensors: {key.replace(published, other): x for key, x in tensors.items()})
    assert_same(read_adapter(folder, CONFIG), expected)


def test_the_digest_tells_adapters_apart_by_weights_and_by_settings(tmp_path: Path) -> None:
    one, other = (write_random_adapter(tmp_path / f"{seed}", CONFIG, seed) for seed in (1, 2))
    digests = [read_adapter(folder, CONFIG).digest for folder in (one, other)]
    change(one, lora_alpha=99)
    assert len({*digests, read_adapter(one, CONFIG).digest}) == 3


def test_the_scale_of_rslora_is_by_the_root_of_the_rank(folder: Path) -> None:
    plain = read_adapter(folder, CONFIG).updates
    change(folder, use_rslora=True)
    stabilised = read_adapter(folder, CONFIG).updates
    assert all(stabilised[name].scale == pytest.approx(plain[name].scale * 2) for name in plain)  # rank 4


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: x for name, x in tensors.items() if name != key}


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors does not exist"),
    "a pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "pickled weights only",
    ),
    "truncated": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-9]),
        "truncated",
    ),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{", encoding="utf-8"), "not readable JSON"),
    "another kind": (lambda f: change(f, peft_type="IA3"), "expected 'LORA'"),
    "whole layers": (lambda f: change(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "biases": (lambda f: change(f, bias="all"), "bias"),
    "a changed base": (lambda f: change(f, init_lora_weights="pissa_niter_16"), "changes the base model"),
    "what is not known": (lambda f: change(f, use_qalora=True), "use_qalora"),
    "parameters": (lambda f: change(f, target_parameters=["x"]), "target_parameters"),
    "no rank": (lambda f: change(f, r="four"), "expected a rank"),
    "a rank that is a flag": (lambda f: change(f, r=True), "expected a rank"),
    "another rank": (lambda f: change(f, r=8), "rank is 8"),
    "a huge rank": (lambda f: change(f, r=10**9), "over the layer's own size"),
    "an endless alpha": (lambda f: change(f, lora_alpha=1e400), "expected a number"),
    "an expression": (lambda f: change(f, rank_pattern={"(a+)+b": 2}), "expression"),
    "a missing magnitude": (lambda f: change(f, use_dora=True), "lora_magnitude_vector of"),
    "a missing half": (lambda f: change_tensors(f, without(FIRST)), "lora_A of"),
    "another size": (
        lambda f: change_tensors(f, lambda t: t | {FIRST: t[FIRST][:, :-1].contiguous()}),
        "of another size",
    ),
    "an unknown layer": (
        lambda f: change_tensors(f, lambda t: {k.replace("up_proj", "up"): x for k, x in t.items()}),
        "no linear layer of this model",
    ),
    "an embedding": (
        lambda f: change_tensors(
            f, lambda t: t | {FIRST.replace("lora_A.weight", "lora_embedding_A"): t[FIRST].clone()}
        ),
        "table of embeddings",
    ),
    "a bias of its own": (
        lambda f: change_tensors(f, lambda t: t | {FIRST.replace("lora_A.weight", "lora_B.bias"): t[FIRST][0].clone()}),
        "no part of a LoRA",
    ),
    "a layer twice": (
        lambda f: change_tensors(
            f, lambda t: t | {FIRST.replace("model.language_model.", "language_model.model."): t[FIRST].clone()}
        ),
        "twice",
    ),
    "integers": (lambda f: change_tensors(f, lambda t: t | {FIRST: t[FIRST].int()}), "expected floats"),
    "no numbers": (lambda f: change_tensors(f, lambda t: t | {FIRST: t[FIRST] * float("nan")}), "no numbers"),
    "nothing": (lambda f: change_tensors(f, lambda _: {}), "no tensors"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_wrong_is_one_line(folder: Path, what: str) -> None:
    harm, says = WRONG[what]
    harm(folder)
    with pytest.raises(PocketVLMError) as caught:
        read_adapter(folder, CONFIG)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert str(folder) in message


@pytest.mark.parametrize("name", ["", "missing", "x\0y", "x" * 5000, 3, None])
def test_what_is_no_folder_is_one_line(tmp_path: Path, name: Any) -> None:
    with pytest.raises(PocketVLMError, match="adapter"):
        read_adapter(tmp_path / name if isinstance(name, str) and name else name, CONFIG)
