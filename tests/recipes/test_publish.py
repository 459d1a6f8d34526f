"""Weights that are published keep fewer bits, so that a wheel of them is small."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from recipes.nano.publish import SIGNIFICANT_BITS, rounded


@pytest.mark.parametrize("bits", [3, SIGNIFICANT_BITS, 8])
def test_weights_are_rounded_to_the_nearest_number_of_so_many_bits(bits: int) -> None:
    weights = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-20, 12).repeat(128)
    found = rounded(weights, bits)
    assert (found - weights).abs().le(weights.abs() * 2.0**-bits).all()
    assert torch.equal(rounded(found, bits), found)
    assert torch.equal(found.bfloat16().float(), found)
    fractions = (torch.frexp(found).mantissa * 2**bits).double()
    assert torch.equal(fractions, fractions.round())


def test_special_numbers_stay_as_they_are() -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -2.0, 2.0**-100])
    assert torch.equal(rounded(special), special)


def test_what_is_rounded_is_smaller_when_it_is_compressed() -> None:
    weights = torch.randn(1 << 16, generator=torch.Generator().manual_seed(2)) * 0.05

    def size(values: torch.Tensor) -> int:
        return len(zlib.compress(np.ascontiguousarray(values.bfloat16().view(torch.int16).numpy()).tobytes()))

    assert size(rounded(weights)) < 0.87 * size(weights)
