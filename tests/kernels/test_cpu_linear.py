"""Layers made for the CPU give the answers of the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from helpers.invariants import (
    assert_close,
    assert_same_decoding,
    cached_decode_equals_full_forward,
    packed_equals_separate,
    prefill,
)
from helpers.tiny_models import prompt_with_views, random_patches, random_text, tiny_model, view, with_text
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pocketvlm.kernels.linear import fp16_linear
from pocketvlm.kernels.linear.choice import for_decoding, for_prompts, is_small, pack
from pocketvlm.kernels.linear.cpu_linear import CPULinear, PlainLinear
from pocketvlm.kernels.linear.fp16_linear import FP16Linear
from pocketvlm.kernels.linear.onednn_linear import OneDNNLinear
from pocketvlm.model.checkpoint import load_model, save_model
from pocketvlm.model.vlm import MiniCPMV

fp16_only = pytest.mark.skipif(not fp16_linear.is_available(), reason="FBGEMM's fp16 product exists on x86 only")
ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)
KINDS = ("blocked", "shared", pytest.param("fp16", marks=fp16_only))


def rounded(model: ModuleT) -> ModuleT:
    """The module, now with weights that bfloat16 holds, as the published ones."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tied: bool) -> tuple[MiniCPMV, MiniCPMV]:
    """A plain model, and the same with CPU kernels of one kind."""
    plain = tiny_model(2, with_text(tie_word_embeddings=tied))
    if request.param == "fp16":
        plain = rounded(copy.deepcopy(plain))
    packed = copy.deepcopy(plain).use_cpu_kernels()
    if request.param == "blocked":
        packed.prepare_batches()
    kinds = {type(module) for module in packed.language_model.modules() if isinstance(module, CPULinear)}
    assert kinds == {FP16Linear if request.param == "fp16" else OneDNNLinear}
    return plain, packed


def packed_fp16(weight: torch.Tensor) -> FP16Linear:
    linear = FP16Linear(weight)
    pack(linear)
    return linear


@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "plain"])
def test_fused_epilogues_equal_the_composition(rows: int, bias: bool, kind: str) -> None:
    torch.manual_seed(rows)
    linear = torch.nn.Linear(96, 130, bias=bias and kind != "fp16").requires_grad_(False)
    if kind == "fp16":
        packed: CPULinear = packed_fp16(rounded(linear).weight)
    elif kind == "plain":
        packed = PlainLinear(linear.weight, linear.bias)
    else:
        packed = OneDNNLinear(linear.weight, linear.bias)
    if kind == "blocked":
        packed.prepare_batches()
    x, other = torch.randn(rows, 96), torch.randn(rows, 130)
    kept = x.clone(), other.clone()
    assert_close(packed(x), linear(x))
    assert_close(packed.gelu_tanh(x), F.gelu(linear(x), approximate="tanh"))
    assert_close(packed.silu(x), F.silu(linear(x)))
    assert_close(packed.add(x, other), linear(x) + other)
    assert_close(packed.mul(x, other), linear(x) * other)
    assert torch.equal(x, kept[0]), "operands are not written to"
    assert torch.equal(other, kept[1])


@fp16_only
@given(
    exponents=st.lists(st.integers(-126, 16), min_size=1, max_size=64),
    top=st.integers(-16, 16),
    bits=st.sampled_from((8, 11)),
    seed=st.integers(0, 2**16),
)
def test_fp16_weights_lose_nothing(exponents: list[int], top: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mantissas = torch.randn(len(exponents), 64, generator=generator)
    weight = (mantissas * 2.0 ** torch.tensor([min(e, top) for e in exponents])[:, None]).view(torch.int32)
    weight = (weight & -(2 ** (24 - bits))).view(torch.float32)  # as bfloat16 and fp16 have them
    weight[0] = 2.0**top
    assert fp16_linear.is_lossless(weight)
    x = torch.randn(3, 64, generator=generator)
    exact = x.double() @ weight.double().T
    # What fp32 addition may round away, and a 2^39th of the largest weight for each product.
    scale = x.double().abs() @ weight.double().abs().T
    allowed = 64 * 2.0**-24 * scale + 2.0**-39 * float(weight.abs().max()) * x.double().abs().sum(1, keepdim=True)
    assert ((packed_fp16(weight)(x).double() - exact).abs() <= allowed).all()


@fp16_only
def test_weights_of_many_parts_and_of_either_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16_linear, "PART_ROWS", 32)
    weight = torch.randn(100, 64).bfloat16()
    x = torch.randn(5, 64)
    narrow, wide = packed_fp16(weight), packed_fp16(weight.float())
    assert len(narrow.parts) == len(wide.parts) == 4
    assert_close(narrow(x), x @ weight.float().T)
    assert torch.equal(narrow(x), wide(x))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.full((2, 2), 0.1), False),
        (torch.full((2, 2), 0.1).bfloat16(), True),
        (torch.full((2, 2), 0.1).bfloat16().float(), True),
        (torch.full((2, 2), 0.1).half().float(), True),
        (torch.full((2, 2), 0.1).half(), True),
        (torch.full((2, 2), 1 + 2.0**-10), True),
        (torch.full((2, 2), 1 + 2.0**-11), False),
        (torch.full((2, 2), 0.1).double(), False),
        (torch.tensor([[1.0, float("inf")]]), False),
        (torch.tensor([[1.0, float("nan")]]).bfloat16(), False),
        (torch.full((2, 2), 2.0**40), False),
        (torch.zeros(2, 2), False),
    ],
)
def test_only_what_loses_nothing_is_narrowed(weight: torch.Tensor, expected: bool) -> None:
    assert fp16_linear.is_lossless(weight) is expected


def test_a_model_loaded_with_cpu_kernels_is_the_same_model(tmp_path: Path, tied: bool) -> None:
    saved = tiny_model(3, with_text(tie_word_embeddings=tied))
    save_model(saved, tmp_path)
    plain, seen = load_model(tmp_path), []
    loaded = load_model(tmp_path, cpu_kernels=True, progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert loaded.dtype == torch.float32
    ids = random_text(40)
    assert torch.equal(loaded.embed(torch.tensor(ids)), plain.embed(torch.tensor(ids)))
    assert_same_decoding(prefill(loaded, ids), prefill(plain, ids))


@pytest.mark.parametrize("choose", [for_decoding, for_prompts])
def test_layers_too_small_to_pack_compute_in_fp32(choose: Callable[[torch.nn.Linear], CPULinear]) -> None:
    linear = torch.nn.Linear(64, 63, bias=False).bfloat16()
    small, x = choose(linear), torch.randn(2, 64)
    assert type(small) is PlainLinear
    assert torch.equal(small(x), x @ linear.weight.float().T)


def test_projections_side_by_side_are_one_product() -> None:
    linears = [torch.nn.Linear(64, width, bias=False) for width in (128, 3, 70)]
    x = torch.randn(5, 64)
    assert_close(for_decoding(*linears)(x), torch.cat([linear(x) for linear in linears], dim=-1))


def test_packed_model_equals_the_plain_one_with_a_picture(pair: tuple[MiniCPMV, MiniCPMV]) -> None:
    plain, packed = pair
    views = [view(8, 8), view(4, 8, "4x")]
    features = [model.encode_views(random_patches(views), views) for model in (plain, packed)]
    assert_close(features[1], features[0])
    ids = prompt_with_views(views, after=70)
    assert_same_decoding(prefill(packed, ids, features[0]), prefill(plain, ids, features[0]))


def test_packed_model_keeps_the_invariants(pair: tuple[MiniCPMV, MiniCPMV]) -> None:
    packed = pair[1]
    prompts = [random_text(5), random_text(66, seed=1)]
    packed_equals_separate(packed, prompts)
    cached_decode_equals_full_forward(packed, prompts, [[1, 2, 3]] * 2)


def test_the_embedding_stays_and_a_single_row_is_as_good_as_several(pair: tuple[MiniCPMV, MiniCPMV]) -> None:
    plain, packed = pair
    ids = torch.tensor(random_text(20))
    assert torch.equal(packed.embed(ids), plain.embed(ids))
    hidden = torch.randn(3, plain.config.text.hidden_size)
    for rows in (1, 3):
        assert_close(packed.logits(hidden[:rows]), plain.logits(hidden[:rows]))


def test_half_precision_models_are_left_as_they_are() -> None:
    half = tiny_model(2).bfloat16()
    names = [name for name, _ in half.named_parameters()]
    assert [name for name, _ in half.use_cpu_kernels().named_parameters()] == names


@pytest.mark.parametrize(("shape", "expected"), [((64, 64), False), ((63, 64), True), ((64, 63), True)])
def test_only_large_layers_are_packed(shape: tuple[int, int], expected: bool) -> None:
    assert is_small(torch.empty(shape)) is expected


def test_a_model_off_the_cpu_is_left_as_it_is() -> None:
    model = MiniCPMV(tiny_model(2).config).to("meta")
    kinds = [type(module) for module in model.modules()]
    assert [type(module) for module in model.use_cpu_kernels().modules()] == kinds
