"""Attention inside views on tile registers is that of vectors, to the bit; the plain twin runs everywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.product import attention_of_tower
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import processor_flags

pytestmark = pytest.mark.usefixtures("_avx512")
KINDS = ["plain", *(["amx"] if processor_flags() >= library.TILE_FLAGS else [])]
# Heads that fill tiles of 64 dims and columns of 16, and that do not; tokens that fill tiles and panels of 64, and that
# do not. Fewer than 128 are left to vectors.
DIMS, TOKENS = st.sampled_from([2, 16, 18, 62, 64, 66, 72, 80]), st.sampled_from([127, 128, 129, 144, 150, 192, 257])


@pytest.fixture(scope="module")
def _avx512(compiled_library: Path) -> None:
    if library.kind_of(compiled_library) != "avx512":
        pytest.skip("tiles go with the operators of AVX-512, which this processor has not")


@cache
def made(kind: str, width: int, heads: int) -> Any:
    found = library.compiled(kind)
    assert found is not None
    return product_session(attention_of_tower(width, heads), found)


def run(kind: str, x: np.ndarray, heads: int) -> np.ndarray:
    (out,) = made(kind, x.shape[-1] // 3, heads).run(None, {"x": x})
    return np.asarray(out)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(dim=DIMS, tokens=TOKENS, heads=st.integers(1, 2), size=st.sampled_from([0.1, 1, 3, 1e4]), seed=st.integers(0, 9))
def test_tiles_change_no_bit(kind: str, dim: int, tokens: int, heads: int, size: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, tokens, 3 * dim * heads), np.float32)
    x[..., : 2 * dim * heads] *= np.float32(size)
    assert run(kind, x, heads).tobytes() == run("off", x, heads).tobytes()


@pytest.mark.parametrize("kind", ["off", *KINDS])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_not_finite_reaches_all_that_see_it(kind: str, part: int) -> None:
    """A query only itself; a key all queries; a channel of a value that channel."""
    x = np.random.default_rng(0).standard_normal((1, 130, 48), np.float32)
    x[0, 70, 16 * part + 3] = np.nan
    lost = np.zeros((130, 16), bool)
    lost[(70, slice(None), slice(None))[part], (slice(None), slice(None), 3)[part]] = True
    assert (np.isnan(run(kind, x, 1)[0]) == lost).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e12])
def test_silence_and_very_large_values(kind: str, size: float) -> None:
    x = np.random.default_rng(1).standard_normal((1, 140, 3 * 72), np.float32) * np.float32(size)
    assert np.isfinite(run(kind, x, 1)).all()
    assert run(kind, x, 1).tobytes() == run("off", x, 1).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_largest_products_do_not_overflow(kind: str) -> None:
    for sign in (1, -1):
        x = np.full((1, 192, 3 * 80), sign, np.float32)
        assert np.allclose(run(kind, x, 1), sign, atol=1e-5)
