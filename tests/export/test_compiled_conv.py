"""The compiled convolution gives what the plain one gives, and leaves the inputs that the next tokens need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d, silu

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.graph import GraphBuilder

FLOAT = ir.DataType.FLOAT
HEAD, BEHIND, EPSILON = 16, 5, 1e-6  # of a row of x, `BEHIND` values are another's


def session(library: Path, keys: int, values: int, taps: Tensor, **changed: Any) -> Any:
    channels, keep = (2 * keys + values) * HEAD, len(taps) - 1
    g = GraphBuilder("conv", compiled=True)
    x = g.input("x", FLOAT, ("batch", "new", channels + BEHIND))
    past = g.input("past", FLOAT, ("batch", keep, channels))
    weight = g.weight("taps", FLOAT, tuple(taps.shape), taps.numpy)
    attributes = {"key_width": keys * HEAD, "head": HEAD, "epsilon": EPSILON} | changed
    outputs = g.own("CausalConv", x, past, weight, outputs=4, **attributes)
    for name, value in zip(("q", "k", "v", "present"), outputs, strict=True):
        g.output(name, value, FLOAT, ("batch", "a", "b"))
    return product_session(ir.to_proto(g.model()).SerializeToString(), library)


def run(conv: Any, x: Tensor, past: Tensor) -> list[Tensor]:
    return [torch.from_numpy(out) for out in conv.run(None, {"x": x.numpy(), "past": past.numpy()})]


def plain(x: Tensor, past: Tensor, taps: Tensor, width: int) -> list[Tensor]:
    joined = torch.cat([past, x[..., : past.shape[2]]], 1)
    # torch takes no window that is longer than what there is.
    out = silu(conv1d(joined.mT, taps.T[:, None], groups=past.shape[2]).mT) if x.shape[1] else joined[:, :0]
    q, k, v = out.split([width, width, past.shape[2] - 2 * width], -1)
    heads = [t.unflatten(-1, (-1, HEAD)) for t in (q, k)]
    unit = [(t * (t.square().sum(-1, keepdim=True) + EPSILON).rsqrt()).flatten(-2) for t in heads]
    return [*unit, v, joined[:, -past.shape[1] :]]


@pytest.mark.parametrize(("keys", "values", "width"), [(1, 1, 2), (2, 2, 4), (3, 6, 4), (1, 3, 8)])
def test_it_is_the_plain_convolution(compiled_library: Path, keys: int, values: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    channels = (2 * keys + values) * HEAD
    taps = torch.randn(width, channels, generator=generator)
    conv = session(compiled_library, keys, values, taps)
    for batch, new in [(1, 1), (1, 2), (1, 32), (1, 33), (2, 70), (5, 1), (3, 7), (1, 0), (0, 2)]:
        x = torch.randn(batch, new, channels + BEHIND, generator=generator)
        past = torch.randn(batch, width - 1, channels, generator=generator)
        expected = plain(x, past, taps, keys * HEAD)
        for got, true in zip(run(conv, x, past), expected, strict=True):
            torch.testing.assert_close(got, true, atol=2e-6, rtol=2e-5)


@settings(max_examples=30)
@given(new=st.integers(2, 100), cut=st.integers(1, 99), batch=st.integers(1, 3))
def test_two_chunks_are_one(compiled_library: Path, new: int, cut: int, batch: int) -> None:
    cut = min(cut, new - 1)
    generator = torch.Generator().manual_seed(new)
    taps = torch.randn(4, 4 * HEAD, generator=generator)
    conv = session(compiled_library, 1, 2, taps)
    x = torch.randn(batch, new, 4 * HEAD + BEHIND, generator=generator)
    past = torch.randn(batch, 3, 4 * HEAD, generator=generator)
    whole, first = run(conv, x, past), run(conv, x[:, :cut], past)
    rest = run(conv, x[:, cut:], first[3])
    for i in range(3):
        assert torch.equal(torch.cat([first[i], rest[i]], 1), whole[i])
    assert torch.equal(rest[3], whole[3])


@pytest.mark.parametrize("new", [0, 1, 2, 9, 33, 70])
def test_the_state_may_be_written_where_it_is_read(compiled_library: Path, new: int) -> None:
    taps = torch.randn(4, 4 * HEAD)
    conv = session(compiled_library, 1, 2, taps)
    x, past = torch.randn(2, new, 4 * HEAD + BEHIND), torch.randn(2, 3, 4 * HEAD)
    expected = run(conv, x, past)
    binding, state = conv.io_binding(), past.clone()
    binding.bind_cpu_input("x", x.numpy())
    place: dict[str, Any] = {"device_type": "cpu", "device_id": 0, "element_type": np.float32}
    place |= {"shape": tuple(state.shape), "buffer_ptr": state.data_ptr()}
    binding.bind_input("past", **place)
    for name in "qkv":
        binding.bind_output(name)
    binding.bind_output("present", **place)
    conv.run_with_iobinding(binding)
    for got, true in zip(binding.copy_outputs_to_cpu()[:3], expected, strict=False):
        assert np.array_equal(got, true.numpy())
    assert torch.equal(state, expected[3])


def test_silent_channels_give_zeros_not_nothing(compiled_library: Path) -> None:
    conv = session(compiled_library, 1, 1, torch.ones(4, 3 * HEAD))
    for out in run(conv, torch.zeros(1, 3, 3 * HEAD + BEHIND), torch.zeros(1, 3, 3 * HEAD)):
        assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"head": 12}, "attributes"), ({"key_width": 24}, "attributes"), ({"key_width": 2 * HEAD}, "inputs")],
)
def test_nodes_that_are_wrong_are_refused(compiled_library: Path, changed: dict[str, int], reason: str) -> None:
    x, taps = torch.ones(1, 1, 4 * HEAD + BEHIND), torch.ones(4, 4 * HEAD)
    with pytest.raises(Exception, match=f"CausalConv: {reason}"):
        run(session(compiled_library, 1, 2, taps, **changed), x, torch.ones(1, 3, 4 * HEAD))


def test_more_taps_than_it_keeps_are_refused(compiled_library: Path) -> None:
    conv = session(compiled_library, 1, 2, torch.ones(9, 4 * HEAD))
    with pytest.raises(Exception, match="CausalConv: inputs"):
        run(conv, torch.ones(1, 1, 4 * HEAD + BEHIND), torch.ones(1, 8, 4 * HEAD))
