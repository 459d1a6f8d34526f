"""The compiled product gives what standard nodes give, for any size, and nothing of a row depends on the others."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu

from pocketvlm.bundle import Scheme
from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx import panels
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.export.onnx.linear import Gate, compiled_linear, token_linear
from pocketvlm.export.onnx.pieces import Given
from pocketvlm.export.onnx.quantization import as_int4, as_int8, block_of
from pocketvlm.kernels.onnx_ops import library

FLOAT = ir.DataType.FLOAT
pytestmark = pytest.mark.usefixtures("compiled_library")
SCHEMES: st.SearchStrategy[Scheme] = st.sampled_from(["int8", "int4"])
INPUTS = st.sampled_from([32, 64, 96, 160, 192, 512, 1056])
# Rows that fill tiles of six, and that do not; outputs that fill panels of 64, and that do not.
ROWS, OUTPUTS = st.integers(1, 20), st.sampled_from([1, 15, 16, 63, 64, 65, 130, 320])


def weight(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs + outputs)) * inputs**-0.5


def pieces(*tensors: torch.Tensor) -> list[Given]:
    return [Given(tensor.numpy()) for tensor in tensors]


def rows(count: int, inputs: int, seed: int) -> torch.Tensor:
    """Of sizes far apart, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (6 * torch.rand(count, 1, generator=generator) - 3)
    size[count // 2] *= count < 3
    return torch.randn(count, inputs, generator=generator) * size


@cache
def sessions(inputs: int, outputs: int, scheme: Scheme, rotated: bool) -> tuple[Any, Any]:
    """(compiled, standard)"""
    made = []
    for compiled in (True, False):
        g = GraphBuilder("product", compiled=compiled)
        x = g.input("x", FLOAT, ("batch", "new", inputs))
        g.output(
            "y",
            token_linear(g, "product", x, pieces(weight(outputs, inputs)), scheme, rotated=rotated),
            FLOAT,
            ("batch", "new", outputs),
        )
        made.append(session(g))
    return made[0], made[1]


def session(g: GraphBuilder) -> Any:
    return product_session(ir.to_proto(g.model()).SerializeToString(), library.compiled())


def run(product: Any, **feeds: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(product.run(None, {name: x[None].numpy() for name, x in feeds.items()})[0][0])


@settings(max_examples=60)
@given(count=ROWS, inputs=INPUTS, outputs=OUTPUTS, scheme=SCHEMES, rotated=st.booleans(), seed=st.integers(0, 99))
def test_it_is_what_standard_nodes_give(
    count: int, inputs: int, outputs: int, scheme: Scheme, rotated: bool, seed: int
) -> None:
    own, standard = sessions(inputs, outputs, scheme, rotated)
    x = rows(count, inputs, seed)
    got, expected = run(own, x=x), run(standard, x=x)
    assert got.shape == (count, outputs)
    # A mixed input between two steps may fall to either side.
    tolerance = 4e-2 if rotated and scheme == "int8" else 1e-5
    sizes = x.norm(dim=-1, keepdim=True) * weight(outputs, inputs).norm(dim=-1)
    assert ((got - expected).abs() <= tolerance * sizes).all()


@settings(max_examples=30)
@given(count=st.integers(2, 14), inputs=INPUTS, outputs=OUTPUTS, scheme=SCHEMES, rotated=st.booleans())
def test_a_row_is_the_same_to_the_bit_alone_and_beside_others(
    count: int, inputs: int, outputs: int, scheme: Scheme, rotated: bool
) -> None:
    own, _ = sessions(inputs, outputs, scheme, rotated)
    x = rows(count, inputs, count)
    assert torch.equal(run(own, x=x), torch.cat([run(own, x=row[None]) for row in x]))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["silu", "sigmoid", "normed"])
@pytest.mark.parametrize("count", [1, 7, 70])
def test_gates_and_norms_before_it(scheme: Scheme, kind: str, count: int) -> None:
    inputs, outputs, head, epsilon = 192, 70, 48, 1e-6
    activation: Literal["silu", "sigmoid"] = "sigmoid" if kind == "sigmoid" else "silu"
    g = GraphBuilder("gated", compiled=True)
    x, joined = g.input("x", FLOAT, ("batch", "new", inputs + 5)), g.input("joined", FLOAT, ("batch", "new", 400))
    norm = torch.rand(head) + 0.5
    scale = g.weight("norm", FLOAT, (head,), norm.numpy) if kind == "normed" else None
    gate = Gate(joined, activation, offset=33, x_offset=5, norm=scale, head=head if scale else 0, epsilon=epsilon)
    w = weight(outputs, inputs)
    out = compiled_linear(g, "product", x, pieces(w), scheme, rotated=True, gate=gate)
    g.output("y", out, FLOAT, ("batch", "new", outputs))

    generator = torch.Generator().manual_seed(count)
    values, gates = (torch.randn(count, width, generator=generator) * 4 for width in (inputs + 5, 400))
    plain = values[:, 5:]
    if scale:
        heads = plain.unflatten(-1, (-1, head))
        plain = (heads * (heads.square().mean(-1, keepdim=True) + epsilon).rsqrt() * norm).flatten(1)
    opening = gates[:, 33 : 33 + inputs]
    plain = plain * (opening.sigmoid() if activation == "sigmoid" else silu(opening))
    _, standard = sessions(inputs, outputs, scheme, True)
    got, expected = run(session(g), x=values, joined=gates), run(standard, x=plain.contiguous())
    assert (got - expected).norm() <= 2e-3 * expected.norm()


@settings(max_examples=30)
@given(
    count=st.sampled_from([1, 7, 100]),
    inputs=st.sampled_from([16, 48, 64, 1072]),
    outputs=OUTPUTS,
    scheme=SCHEMES,
    has_gelu=st.booleans(),
)
def test_bias_and_gelu_behind_it(count: int, inputs: int, outputs: int, scheme: Scheme, has_gelu: bool) -> None:
    """Also of inputs that no rotation could mix."""
    g = GraphBuilder("biased", compiled=True)
    x = g.input("x", FLOAT, ("batch", "new", inputs))
    w, generator = weight(outputs, inputs), torch.Generator().manual_seed(count)
    parts = (w[: outputs // 2], w[outputs // 2 :]) if outputs > 1 else (w,)
    bias = torch.randn(outputs, generator=generator)
    biases = bias.split([len(part) for part in parts])
    out = compiled_linear(g, "product", x, pieces(*parts), scheme, biases=pieces(*biases), gelu=has_gelu)
    g.output("y", out, FLOAT, ("batch", "new", outputs))
    values = torch.randn(count, inputs, generator=generator)
    h = GraphBuilder("plain", compiled=True)
    x = h.input("x", FLOAT, ("batch", "new", inputs))
    h.output("y", compiled_linear(h, "product", x, pieces(w), scheme), FLOAT, ("batch", "new", outputs))
    expected = run(session(h), x=values) + bias
    expected = gelu(expected, approximate="tanh") if has_gelu else expected
    torch.testing.assert_close(run(session(g), x=values), expected, atol=2e-6, rtol=2e-5)
    assert (expected - values @ w.T).abs().max() > 0


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_very_small_and_very_large_gates_stay_finite(size: float) -> None:
    g = GraphBuilder("gated", compiled=True)
    x, joined = g.input("x", FLOAT, ("batch", "new", 64)), g.input("joined", FLOAT, ("batch", "new", 64))
    out = compiled_linear(g, "p", x, pieces(torch.eye(64)), "int8", gate=Gate(joined, "silu"))
    g.output("y", out, FLOAT, ("batch", "new", 64))
    gates = torch.linspace(-1, 1, 64)[None] * size
    got, expected = run(session(g), x=torch.ones(1, 64), joined=gates), silu(gates)
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() <= 0.01 * expected.abs().max()


def test_no_rows_give_no_rows() -> None:
    own, _ = sessions(64, 65, "int8", False)
    assert run(own, x=torch.empty(0, 64)).shape == (0, 65)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"K": 48}, "attributes"),
        ({"K": 48, "block": 48, "rotate": 1}, "attributes"),
        ({"bits": 5}, "attributes"),
        ({"block": 24}, "attributes"),
        ({"head": 10}, "attributes"),
        ({"activation": 3}, "attributes"),
        ({"x_offset": -1}, "attributes"),
        ({"N": 200}, "weights"),
        ({"block": 32}, "weights"),
        ({"bits": 4}, "weights"),
        ({"K": 96, "block": 96}, "inputs"),
        ({"x_offset": 1}, "inputs"),
        ({"activation": 1}, "inputs"),
        ({"head": 32}, "inputs"),
    ],
)
def test_nodes_that_are_wrong_are_refused(changed: dict[str, int], reason: str) -> None:
    g = GraphBuilder("wrong", compiled=True)
    x = g.input("x", FLOAT, ("batch", "new", 64))
    values, scales = panels.from_int8(*as_int8(pieces(weight(64, 64))))
    parts = [
        g.weight("values", ir.DataType.UINT8, values.shape, lambda: values),
        g.weight("scales", FLOAT, scales.shape, lambda: scales),
    ]
    attributes = {"bits": 8, "K": 64, "N": 64, "block": 64, "rotate": 0, "activation": 0, "gelu": 0}
    attributes |= {"x_offset": 0, "gate_offset": 0, "head": 0} | changed
    g.output("y", g.own("QuantizedLinear", x, *parts, **attributes, epsilon=0.0), FLOAT, ("batch", "new", "outputs"))
    with pytest.raises(Exception, match=f"QuantizedLinear: {reason}"):
        run(session(g), x=torch.ones(1, 64))


@pytest.mark.parametrize("outputs", [1, 64, 100])
def test_panels_hold_every_weight_and_zeros_behind(outputs: int) -> None:
    w, count = weight(outputs, 64), panels.panels_of(outputs)
    values, scale = as_int8(pieces(w))
    packed, scales = panels.from_int8(values, scale)
    back = packed.transpose(0, 2, 1, 3).reshape(count * panels.PANEL, 64).astype(int) - 128
    assert (back[:outputs] == values.T).all()
    assert not back[outputs:].any()
    assert (scales.reshape(-1)[:outputs] == scale).all()

    block = block_of(64)
    assert block is not None
    halves, steps = as_int4(pieces(w))
    packed, scales = panels.from_int4(halves, steps)
    eight = np.stack([packed & 15, packed >> 4], axis=-2)  # [P, K / 8, 64, 2, 4]
    back = eight.transpose(0, 2, 1, 3, 4).reshape(count * panels.PANEL, 64)
    pairs = halves.reshape(outputs, -1)
    assert (back[:outputs, 0::2] == pairs & 15).all()
    assert (back[:outputs, 1::2] == pairs >> 4).all()
    assert scales.shape == (count, 64 // block, panels.PANEL)
