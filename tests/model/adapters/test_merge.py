"""A merged model is the plain one with its weights changed, and nothing else of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.adapters import ALL, DECODER, random_adapter
from helpers.invariants import assert_close
from helpers.tiny_models import CONFIG, tiny_model

from pocketvlm.errors import CheckpointError
from pocketvlm.model.adapters.lora import HEAD, Adapter, LowRankUpdate
from pocketvlm.model.adapters.merge import merge


def test_only_the_weights_that_the_adapter_names_change() -> None:
    plain, adapter = tiny_model(), random_adapter(CONFIG, 1, r"language_model\.layers\.0\.")
    merged = merge(copy.deepcopy(plain), adapter)
    for name, parameter in plain.named_parameters():
        is_same = torch.equal(merged.get_parameter(name), parameter)
        assert is_same == (name not in adapter.updates), name


def test_magnitudes_of_dora_are_the_norms_of_the_merged_rows() -> None:
    adapter = random_adapter(CONFIG, 1, ALL, dora=True)
    merged = merge(copy.deepcopy(tiny_model()), adapter)
    for name, update in adapter.updates.items():
        assert update.magnitude_N is not None
        assert_close(merged.get_parameter(name).norm(dim=1), update.magnitude_N)


def test_an_update_of_the_tied_head_leaves_the_embedding_alone() -> None:
    model = copy.deepcopy(tiny_model())
    table = model.language_model.embed_tokens.weight.clone()
    merge(model, random_adapter(CONFIG, 1, HEAD))
    assert torch.equal(model.language_model.embed_tokens.weight, table)
    assert model.language_model.lm_head is not None
    assert not torch.equal(model.get_parameter(HEAD), table)
    assert not model.config.text.tie_word_embeddings
    assert not model.language_model.config.tie_word_embeddings


def test_small_updates_survive_in_the_type_that_is_asked_for() -> None:
    adapter = random_adapter(CONFIG, 1, DECODER, size=1e-4)
    half = merge(copy.deepcopy(tiny_model()).bfloat16(), adapter, dtype=torch.float32)
    name = next(iter(adapter.updates))
    assert half.get_parameter(name).dtype == torch.float32
    assert not torch.equal(half.get_parameter(name), tiny_model().get_parameter(name).bfloat16().float())
    assert half.get_parameter("language_model.norm.weight").dtype == torch.bfloat16


def test_what_the_cpu_holds_in_fp16_is_rounded_to_its_11_bits_and_nothing_else_is() -> None:
    adapter = random_adapter(CONFIG, 1, rf"{DECODER}|{HEAD}")
    half = copy.deepcopy(tiny_model()).bfloat16()
    exact, narrow = (merge(copy.deepcopy(half), adapter, dtype=torch.float32, narrow=flag) for flag in (False, True))
    for name in adapter.updates:
        assert narrow.get_parameter(name).dtype == torch.float16
        assert torch.equal(narrow.get_parameter(name), exact.get_parameter(name).half())
    full = merge(copy.deepcopy(tiny_model()), adapter, dtype=torch.float32, narrow=True)
    assert {full.get_parameter(name).dtype for name in adapter.updates} == {torch.float32}


@pytest.mark.parametrize("size", [2.0**-12, 2.0**20])
def test_weights_out_of_the_range_of_fp16_are_not_rounded_to_it(size: float) -> None:
    name = "language_model.layers.0.mlp.up_proj.weight"
    model = copy.deepcopy(tiny_model()).bfloat16()
    with torch.no_grad():
        model.get_parameter(name).zero_()
    outputs, inputs = model.get_parameter(name).shape
    update = LowRankUpdate(torch.ones(1, inputs), torch.full((outputs, 1), size), 1.0)
    merge(model, Adapter(Path("odd"), "", {name: update}), dtype=torch.float32, narrow=True)
    assert torch.equal(model.get_parameter(name), torch.full((outputs, inputs), size))


def test_a_model_with_cpu_kernels_is_refused() -> None:
    with pytest.raises(CheckpointError, match="CPU kernels"):
        merge(copy.deepcopy(tiny_model()).use_cpu_kernels(), random_adapter(CONFIG, 1))


def test_an_update_that_overflows_is_refused() -> None:
    name = "language_model.layers.0.mlp.up_proj.weight"
    outputs, inputs = tiny_model().get_parameter(name).shape
    huge = LowRankUpdate(torch.full((1, inputs), 1e30), torch.full((outputs, 1), 1e30), 1.0)
    with pytest.raises(CheckpointError, match="no numbers"):
        merge(copy.deepcopy(tiny_model()), Adapter(Path("huge"), "", {name: huge}))
