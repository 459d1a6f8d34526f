"""Attention of prompts on tile registers is that of vectors but for what more keys at once round. The plain twin, which
runs on all processors with AVX-512, is equal to the bit; where there are tiles, test_causal_attention asks of them what
holds on vectors.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from export.test_causal_attention import FAR, case, run, session
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import processor_flags

pytestmark = pytest.mark.usefixtures("_avx512")
HAS_TILES = processor_flags() >= library.TILE_FLAGS
KINDS = ["plain", *(["amx"] if HAS_TILES else [])]
Case = tuple[Tensor, Tensor, Tensor, list[Tensor]]


@pytest.fixture(scope="module")
def _avx512(compiled_library: Path) -> None:
    if library.kind_of(compiled_library) != "avx512":
        pytest.skip("tiles go with the operators of AVX-512, which this processor has not")


@cache
def made(kind: str, heads: int, groups: int, dim: int) -> Any:
    found = library.compiled(kind)
    assert found is not None
    return session(found, heads, groups, dim)


def of(kind: str, drawn: Case, lengths: list[int], heads: int, groups: int, dim: int) -> Tensor:
    out, *_ = run(made(kind, heads, groups, dim), *drawn, lengths)
    return out


def check(drawn: Case, lengths: list[int], heads: int, groups: int, dim: int, bound: float) -> None:
    wanted, plain = (of(kind, drawn, lengths, heads, groups, dim) for kind in ("off", "plain"))
    assert (plain - wanted).norm() <= bound * wanted.norm()
    if HAS_TILES:
        assert torch.equal(of("amx", drawn, lengths, heads, groups, dim), plain)


@settings(max_examples=12)
@given(
    dim=st.sampled_from([64, 128, 256]),
    groups=st.integers(1, 2),
    shared=st.sampled_from([1, 4, 5]),
    count=st.sampled_from([66, 67, 100, 131]),
    before=st.lists(st.sampled_from([0, 1, 62, 126, 129, 445, 512]), min_size=1, max_size=2),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 3),
)
def test_tiles_are_near_vectors(
    dim: int, groups: int, shared: int, count: int, before: list[int], spread: float, seed: int
) -> None:
    lengths = [b + count for b in before]
    drawn = case(seed, len(before), count, lengths, shared * groups, groups, dim, spread)
    check(drawn, lengths, shared * groups, groups, dim, 2e-3)


@pytest.mark.parametrize("dim", [64, 256])
def test_so_are_rows_that_see_many_keys(dim: int) -> None:
    """Some of which see no more than `FAR`, and have 16 bits."""
    lengths = [FAR + 40]
    check(case(dim, 1, 70, lengths, 1, 1, dim), lengths, 1, 1, dim, 4e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [130, FAR])
@pytest.mark.parametrize("what", range(5))
def test_what_is_not_finite_reaches_who_it_reaches_on_vectors(kind: str, before: int, what: int) -> None:
    lengths = [before + 70]
    q, k, v, past = case(what, 1, 70, lengths, 2, 1, 64)
    [q[0, 30], k[0, 40], v[0, 50], past[0][0, 0, 60], past[1][0, 0, 77]][what][7] = torch.nan
    drawn = (q, k, v, past)
    assert torch.equal(of(kind, drawn, lengths, 2, 1, 64).isnan(), of("off", drawn, lengths, 2, 1, 64).isnan())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e12, -1e12])
def test_equal_values_stay_what_they_are_however_large(kind: str, size: float) -> None:
    lengths = [700]
    q, k, v, past = case(0, 1, 80, lengths, 1, 1, 256)
    for one in (q, k, v, *past):
        one.fill_(size)
    assert torch.allclose(of(kind, (q, k, v, past), lengths, 1, 1, 256), v, rtol=1e-3, atol=0)


def test_largest_sums_do_not_overflow() -> None:
    """Ones in the first register of a row are equal everywhere when it is mixed; 512 keys of the same size."""
    ones = torch.zeros(1, 90, 256)
    ones[..., :16] = 1.0
    for sign in (1, -1):
        past = [ones[:, :1].expand(1, 700, 256)[None].clone(), sign * ones[:, :1].expand(1, 700, 256)[None].clone()]
        drawn = (ones, ones, sign * ones, past)
        assert torch.allclose(of("plain", drawn, [700], 1, 1, 256), sign * ones, atol=1e-3)
        check(drawn, [700], 1, 1, 256, 1e-3)
