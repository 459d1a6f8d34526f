"""The compiled attention is softmax attention to 16 bits, for any number of tokens, and no view looks at another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.graph import GraphBuilder

FLOAT = ir.DataType.FLOAT
# Heads that fill registers of 16 channels and that do not; tokens that fill tiles of 5 and panels of 64.
DIMS, TOKENS = st.sampled_from([2, 6, 16, 18, 48, 64, 66, 72, 80]), st.sampled_from([1, 2, 4, 5, 63, 64, 65, 129, 300])


def session(library: Path, width: int, heads: int) -> Any:
    g = GraphBuilder("attention", compiled=True)
    joined = g.input("joined", FLOAT, ("views", "tokens", 3 * width))
    g.output("out", g.own("ViewAttention", joined, heads=heads), FLOAT, ("views", "tokens", width))
    return product_session(ir.to_proto(g.model()).SerializeToString(), library)


def run(attention: Any, joined: Tensor) -> Tensor:
    return torch.from_numpy(attention.run(None, {"joined": joined.numpy()})[0])


def plain(joined: Tensor, heads: int) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined.double().chunk(3, -1))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).float()


@settings(max_examples=60)
@given(dim=DIMS, tokens=TOKENS, heads=st.integers(1, 3), views=st.integers(1, 3), size=st.sampled_from([0.1, 1, 3]))
def test_it_is_softmax_attention(
    compiled_library: Path, dim: int, tokens: int, heads: int, views: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(dim * tokens)
    joined = torch.randn(views, tokens, 3 * dim * heads, generator=generator)
    joined[..., : 2 * dim * heads] *= size
    got, expected = run(session(compiled_library, dim * heads, heads), joined), plain(joined, heads)
    assert (got - expected).abs().max() <= 4e-3 * joined[..., 2 * dim * heads :].abs().max()
    assert (got - expected).norm() <= 2e-3 * expected.norm()


def test_a_view_is_the_same_to_the_bit_alone_and_beside_others(compiled_library: Path) -> None:
    joined = torch.randn(4, 70, 3 * 72 * 2, generator=torch.Generator().manual_seed(0))
    joined[2] *= 1000
    attention = session(compiled_library, 144, 2)
    assert torch.equal(run(attention, joined), torch.cat([run(attention, view[None]) for view in joined]))


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e12])
def test_silence_and_very_large_values_stay_finite(compiled_library: Path, size: float) -> None:
    joined = torch.randn(1, 9, 3 * 16, generator=torch.Generator().manual_seed(1)) * size
    got = run(session(compiled_library, 16, 1), joined)
    assert torch.isfinite(got).all()
    # An average of values is among them.
    assert got.abs().max() <= 1.001 * joined[..., 32:].abs().max()


def test_equal_keys_share_alike_however_many(compiled_library: Path) -> None:
    """Nothing is lost to rounding where each of very many tokens has little."""
    joined = torch.zeros(1, 5000, 48)
    joined[..., 32:] = torch.randn(5000, 16, generator=torch.Generator().manual_seed(2)) + 1
    got = run(session(compiled_library, 16, 1), joined)
    assert (got - joined[..., 32:].mean(1, keepdim=True)).abs().max() <= 1e-3


def test_a_key_that_draws_nearly_all_attention_costs_only_its_neighbours_precision(compiled_library: Path) -> None:
    """It takes 98 % and says nothing, as some do in trained towers; a hundred-thousandth each is for the others."""
    joined = torch.zeros(1, 1024, 48)
    joined[..., 0], joined[..., 700, 16] = 4.0, 11.0
    joined[..., 32:] = torch.randn(1024, 16, generator=torch.Generator().manual_seed(3))
    joined[0, 640:704, 32:] = 0.0
    got, expected = run(session(compiled_library, 16, 1), joined), plain(joined, 1)
    assert (got - expected).norm() <= 0.02 * expected.norm()


def test_largest_products_do_not_overflow(compiled_library: Path) -> None:
    joined = torch.ones(1, 300, 3 * 80)
    assert torch.allclose(run(session(compiled_library, 80, 1), joined), torch.ones(1, 300, 80), atol=1e-5)


def test_no_views_give_none(compiled_library: Path) -> None:
    assert run(session(compiled_library, 16, 1), torch.empty(0, 5, 48)).shape == (0, 5, 16)


@pytest.mark.parametrize(("width", "heads", "reason"), [(16, 0, "attributes"), (16, 3, "inputs"), (82, 1, "inputs")])
def test_nodes_that_are_wrong_are_refused(compiled_library: Path, width: int, heads: int, reason: str) -> None:
    with pytest.raises(Exception, match=f"ViewAttention: {reason}"):
        run(session(compiled_library, width, heads), torch.ones(1, 2, 3 * width))
