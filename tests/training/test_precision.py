"""bfloat16 where a CPU is fast at it and the model is wide: weights that do not learn are kept in it, and nothing is
computed that autocast over weights in float32 would not compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.trainer import SETTINGS, Samples, run, trainer
from torch import nn

import pocketvlm.training.precision as module
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing.processor import Processor
from pocketvlm.training.evaluate import exact_answers
from pocketvlm.training.parts import linear_layers
from pocketvlm.training.precision import HalfLinear, autocast_dtype, halve_base, keeps_half
from pocketvlm.training.run import load_base
from pocketvlm.training.settings import PARTS, TuneSettings
from pocketvlm.training.trainer import Trainer

CPU = torch.device("cpu")
LORA = {"method": "lora", "rank": 4, "steps": 3}


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were fast at bfloat16, and nano wide."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(module, "_WIDE", 1)


@pytest.mark.parametrize(("amx", "avx512"), [(False, False), (True, False), (False, True)])
def test_products_are_bfloat16_where_that_is_fast_and_the_model_wide(
    amx: bool, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    is_fast = amx or avx512
    assert (autocast_dtype(CPU, 1024) == torch.bfloat16) == is_fast
    assert autocast_dtype(CPU, 192) == torch.float32
    assert autocast_dtype(torch.device("cuda"), 192) == torch.bfloat16
    assert [keeps_half(method, CPU, 1024) for method in ("lora", "qlora", "full")] == [is_fast, is_fast, False]


@pytest.mark.usefixtures("fast")
def test_a_base_in_bfloat16_learns_what_autocast_would(
    nano: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapters(one: Trainer) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}

    half = trainer(nano, tmp_path / "half", **LORA)
    kinds = {name: type(half.model.get_submodule(name)) for name in linear_layers(half.model, PARTS)}
    assert HalfLinear in kinds.values()
    assert nn.Linear not in {kind for name, kind in kinds.items() if "lora_" not in name}
    monkeypatch.setattr("pocketvlm.training.run.keeps_half", lambda *_: False)
    plain = trainer(nano, tmp_path / "plain", **LORA)
    assert HalfLinear not in {type(one) for one in plain.model.modules()}
    assert half.dtype == plain.dtype == torch.bfloat16
    for mine, other in zip(half.parameters, plain.parameters, strict=True):  # peft draws them in the dtype of the base
        other.data.copy_(mine.data)
    assert run(half) == run(plain)
    found, expected = adapters(half), adapters(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(p.dtype == torch.float32 for p in half.parameters)


@pytest.mark.usefixtures("fast")
def test_an_evaluation_computes_in_it_without_autocast(nano: ModelDirectory) -> None:
    settings = TuneSettings(**{**SETTINGS, "method": "lora"})
    model = load_base(nano, settings, CPU)
    assert {model.get_submodule(name).weight.dtype for name in linear_layers(model, PARTS)} == {torch.bfloat16}
    assert model.language_model.embed_tokens.weight.dtype == torch.float32
    samples = Samples(4)
    assert exact_answers(model, Processor.from_directory(nano.path), samples, {"max_slice_nums": 1}) is not None


def test_what_is_halved_stays_what_it_is(nano: ModelDirectory) -> None:
    model = load_base(nano, TuneSettings(**SETTINGS), CPU)
    name = next(iter(linear_layers(model, ("decoder",))))
    before = model.get_submodule(name)
    x = torch.randn(3, before.in_features)
    expected = before(x)
    halve_base(model, [name])
    halve_base(model, [name])
    found = model.get_submodule(name)(x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert not model.get_submodule(name).weight.requires_grad
