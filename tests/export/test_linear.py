"""int8 products of tokens: each token on its own, near the true product, zeros for zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.export.onnx.linear import token_linear
from pocketvlm.export.onnx.pieces import Given
from pocketvlm.export.onnx.quantization import MIXED, as_int8, from_int8, rotation

OUTPUTS = 24


def weight(inputs: int) -> torch.Tensor:
    return torch.randn(OUTPUTS, inputs, generator=torch.Generator().manual_seed(inputs))


def session(inputs: int, rotated: bool) -> Any:
    g = GraphBuilder("product")
    x = g.input("x", ir.DataType.FLOAT, ("batch", "new", inputs))
    y = token_linear(g, "product", x, [Given(weight(inputs).numpy())], "int8", rotated=rotated)
    g.output("y", y, ir.DataType.FLOAT, ("batch", "new", OUTPUTS))
    return product_session(ir.to_proto(g.model()).SerializeToString())


def run(product: Any, x_SK: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(product.run(None, {"x": x_SK[None].numpy()})[0][0])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rotated"])
def product(request: pytest.FixtureRequest) -> Any:
    return session(96, request.param)


@settings(max_examples=30)
@given(sizes=st.lists(st.sampled_from([1e-6, 0.1, 1.0, 300.0]), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_a_token_is_the_same_alone_and_beside_others_of_any_size(product: Any, sizes: list[float], seed: int) -> None:
    x = torch.randn(len(sizes), 96, generator=torch.Generator().manual_seed(seed)) * torch.tensor(sizes)[:, None]
    together, true = run(product, x), x @ weight(96).T
    for i, size in enumerate(sizes):
        alone = run(product, x[i : i + 1])[0]
        assert torch.allclose(together[i], alone, rtol=0, atol=2e-3 * float(true[i].norm())), size
        assert (alone - true[i]).norm() <= 0.02 * true[i].norm()


def test_without_rotation_they_are_the_same_to_the_bit() -> None:
    product, x = session(96, False), torch.randn(7, 96)
    assert torch.equal(run(product, x), torch.cat([run(product, row[None]) for row in x]))


def test_zeros_stay_zeros_and_leave_others_alone(product: Any) -> None:
    x = torch.zeros(3, 96)
    x[1] = 1
    y = run(product, x)
    assert not y[0].any()
    assert not y[2].any()
    assert torch.isfinite(y).all()


def test_rotation_keeps_small_values_beside_a_large_one() -> None:
    x = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    x[:, 17] *= 300
    true = x @ weight(96).T
    error = {rotated: (run(session(96, rotated), x) - true).norm() / true.norm() for rotated in (False, True)}
    assert error[True] < error[False] / 2


@pytest.mark.parametrize(("inputs", "size"), [(3584, MIXED), (48, 16), (6, 2)])
def test_rotations_are_orthogonal_and_weights_turn_back(inputs: int, size: int) -> None:
    mix = rotation(inputs)
    assert mix is not None
    assert mix.shape == (size, size)
    assert np.allclose(mix @ mix, np.eye(size), atol=1e-6)
    w = torch.randn(5, inputs)
    turned = from_int8(*as_int8([Given(w.numpy())], mix)).reshape(5, -1, size) @ mix
    assert np.allclose(turned.reshape(5, inputs), w.numpy(), atol=0.05)


def test_odd_widths_are_not_rotated() -> None:
    assert rotation(35) is None
    x = torch.randn(2, 35)
    assert torch.equal(run(session(35, True), x), run(session(35, False), x))
