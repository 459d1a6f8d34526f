"""Weights laid out for the CPU give the answers of the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from invariants import (
    assert_close,
    assert_same_decoding,
    cached_decode_equals_full_forward,
    packed_equals_separate,
    prefill,
)
from tiny_models import prompt_with_views, random_patches, random_text, tiny_model, view, with_text

from pocketvlm.kernels.cpu_linear import (
    CPULinear,
    is_suitable,
    linear_add,
    linear_gelu_tanh,
    linear_mul,
    linear_silu,
)
from pocketvlm.model.vlm import MiniCPMV


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def plain(request: pytest.FixtureRequest) -> MiniCPMV:
    return tiny_model(2, with_text(tie_word_embeddings=request.param))


@pytest.fixture(params=[True, False], ids=["blocked", "shared"])
def packed(plain: MiniCPMV, request: pytest.FixtureRequest) -> MiniCPMV:
    model = copy.deepcopy(plain).use_cpu_kernels()
    if request.param:
        model.prepare_batches()
    return model


@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("blocked", [True, False])
def test_fused_epilogues_equal_the_composition(rows: int, bias: bool, blocked: bool) -> None:
    torch.manual_seed(rows)
    linear = torch.nn.Linear(96, 130, bias=bias).requires_grad_(False)
    packed = CPULinear(linear.weight, linear.bias)
    if blocked:
        packed.lay_out()
    x, other = torch.randn(rows, 96), torch.randn(rows, 130)
    kept = other.clone()
    assert_close(packed(x), linear(x))
    for fused in (linear_gelu_tanh, linear_silu):
        assert_close(fused(packed, x), fused(linear, x))
    for fused in (linear_add, linear_mul):
        assert_close(fused(packed, x, other), fused(linear, x, other))
    assert torch.equal(other, kept), "the other operand is not written to"


def test_packed_model_equals_the_plain_one_with_a_picture(plain: MiniCPMV, packed: MiniCPMV) -> None:
    views = [view(8, 8), view(4, 8, "4x")]
    features = [model.encode_views(random_patches(views), views) for model in (plain, packed)]
    assert_close(features[1], features[0])
    ids = prompt_with_views(views, after=70)
    assert_same_decoding(prefill(packed, ids, features[0]), prefill(plain, ids, features[0]))


def test_packed_model_keeps_the_invariants(packed: MiniCPMV) -> None:
    prompts = [random_text(5), random_text(66, seed=1)]
    packed_equals_separate(packed, prompts)
    cached_decode_equals_full_forward(packed, prompts, [[1, 2, 3]] * 2)


def test_the_tied_embedding_stays_and_a_single_row_uses_it(plain: MiniCPMV) -> None:
    packed = copy.deepcopy(plain).use_cpu_kernels()
    packed.prepare_batches()
    ids = torch.tensor(random_text(20))
    assert torch.equal(packed.embed(ids), plain.embed(ids))
    hidden = torch.randn(3, plain.config.text.hidden_size)
    for rows in (1, 3):
        assert_close(packed.logits(hidden[:rows]), plain.logits(hidden[:rows]))


def test_half_precision_models_are_left_as_they_are(plain: MiniCPMV) -> None:
    half = copy.deepcopy(plain).bfloat16()
    names = [name for name, _ in half.named_parameters()]
    assert [name for name, _ in half.use_cpu_kernels().named_parameters()] == names


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [((64, 64), torch.float32, True), ((63, 64), torch.float32, False), ((64, 64), torch.bfloat16, False)],
)
def test_only_large_fp32_layers_are_packable(shape: tuple[int, int], dtype: torch.dtype, expected: bool) -> None:
    assert is_suitable(torch.nn.Linear(*shape, dtype=dtype)) is expected
