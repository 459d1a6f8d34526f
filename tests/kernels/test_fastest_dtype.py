"""What the recipe multiplies in: bfloat16 where that was measured to be faster, and Muon's iteration in it."""

from __future__ import annotations

import pytest
import torch

from pocketvlm.kernels import fastest_dtype as machine
from recipes.nano.muon import Muon, orthogonalise


@pytest.mark.parametrize(("seconds", "dtype"), [(0.5, torch.bfloat16), (1.0, torch.float32), (3.0, torch.float32)])
def test_bfloat16_is_chosen_where_its_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(machine, "_seconds", lambda kind: seconds if kind == torch.bfloat16 else 1.0)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert machine.fastest_dtype() == dtype
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert machine.fastest_dtype() == torch.float32


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_an_update_in_bfloat16_is_near_the_one_in_fp32(size: float) -> None:
    torch.manual_seed(0)
    gradient, moved = torch.randn(48, 32) * size, []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.zeros(48, 32))
        weight.grad = gradient.clone()
        Muon([weight], 1.0, 0.0, 0.0, dtype).step()
        moved.append(weight.detach())
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()
    assert 0.6 < torch.linalg.svdvals(orthogonalise(gradient / gradient.norm()))[-1] < 1.4
