"""The compiled causal attention is softmax attention, behind any cache, in any cut, and writes what it was given."""

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

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import processor_flags

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32
FEW = 65  # new tokens up to which all is in fp32, see call.h
FAR = 8192  # keys above which a row of a prompt may have its scores in 8 bits, see prompt_attention.h


@pytest.fixture(scope="module", params=["off", *(["amx"] if processor_flags() >= library.TILE_FLAGS else [])])
def compiled_library(request: pytest.FixtureRequest, compiled_library: Path) -> Path:
    """That of vectors and, where the processor has some, that of tile registers."""
    if request.param == "amx" and library.kind_of(compiled_library) != "avx512":
        pytest.skip("tiles go with the operators of AVX-512, which are not those that are asked for")
    found = library.compiled(request.param)
    assert found is not None
    return found


def session(operators: Path, heads: int, groups: int, dim: int) -> Any:
    g = GraphBuilder("attention", compiled=True)
    # Sizes without numbers: what does not fit is left to the operator to find.
    new = [g.input(name, FLOAT, (f"batch_{name}", f"new_{name}", f"width_{name}")) for name in ("q", "k", "v")]
    past = [
        g.input(name, FLOAT, (f"batch_{name}", f"heads_{name}", f"capacity_{name}", f"dim_{name}"))
        for name in ("past_key", "past_value")
    ]
    lengths = g.input("seqlens_k", INT32, ("sequences",))
    made = g.own("CausalAttention", *new, *past, lengths, outputs=3, num_heads=heads, kv_num_heads=groups)
    shape = ("batch", groups, "capacity", dim)
    for name, value in zip(("out", "key", "value"), made, strict=True):
        g.output(name, value, FLOAT, ("batch", "new", heads * dim) if name == "out" else shape)
    return product_session(ir.to_proto(g.model()).SerializeToString(), operators)


def run(attention: Any, q: Tensor, k: Tensor, v: Tensor, past: list[Tensor], lengths: list[int]) -> list[Tensor]:
    """The output and the caches; `lengths` are tokens of each sequence with the new ones."""
    names = ("q", "k", "v", "past_key", "past_value")
    feeds = {name: t.numpy() for name, t in zip(names, (q, k, v, *past), strict=True)}
    feeds["seqlens_k"] = np.array(lengths, np.int32) - 1
    return [torch.from_numpy(out) for out in attention.run(None, feeds)]


def plain(q: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """One sequence: [S, H, E] over [G, length, E], in float64."""
    count, heads, dim = q.shape
    shared = heads // len(keys)
    scores = torch.einsum("she,hle->hsl", q.double(), keys.double().repeat_interleave(shared, 0)) / dim**0.5
    hidden = torch.arange(length)[None] > torch.arange(length - count, length)[:, None]
    shares = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hsl,hle->she", shares, values.double().repeat_interleave(shared, 0)).float()


def case(
    seed: int, batch: int, count: int, lengths: list[int], heads: int, groups: int, dim: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    capacity = max(lengths) + 3
    q, k, v = (torch.randn(batch, count, n * dim, generator=generator) for n in (heads, groups, groups))
    past = [torch.randn(batch, groups, capacity, dim, generator=generator) for _ in range(2)]
    return q * spread, k, v, past


@settings(max_examples=50)
@given(
    dim=st.sampled_from([64, 128, 256]),
    groups=st.integers(1, 2),
    shared=st.sampled_from([1, 2, 4, 5]),
    count=st.sampled_from([1, 2, 5, 7, 64, 65, 66, 100, 131]),
    before=st.lists(st.sampled_from([0, 1, 39, 63, 64, 65, 447, 511, 512, 1030]), min_size=1, max_size=3),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 3),
)
def test_it_is_causal_attention(
    compiled_library: Path,
    dim: int,
    groups: int,
    shared: int,
    count: int,
    before: list[int],
    spread: float,
    seed: int,
) -> None:
    lengths = [b + count for b in before]
    q, k, v, past = case(seed, len(before), count, lengths, shared * groups, groups, dim, spread)
    out, *present = run(session(compiled_library, shared * groups, groups, dim), q, k, v, past, lengths)
    for b, length in enumerate(lengths):
        for new, old, got in zip((k, v), past, present, strict=True):
            rows = slice(length - count, length)
            assert torch.equal(got[b, :, : length - count], old[b, :, : length - count])
            assert torch.equal(got[b, :, rows], new[b].unflatten(-1, (groups, dim)).transpose(0, 1))
        expected = plain(q[b].unflatten(-1, (-1, dim)), *(cache[b, :, :length] for cache in present), length)
        error = out[b].unflatten(-1, (-1, dim)) - expected
        bound = 1e-5 if count <= FEW else 4e-3
        assert error.norm() <= bound * expected.norm()


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("count", [1, 20, 70])
def test_a_row_does_not_depend_on_what_comes_after_it(compiled_library: Path, count: int, spread: float) -> None:
    """To the bit, queries of later tokens among it: those of small spread feel keys that the others do not."""
    q, k, v, past = case(0, 1, 2 * count, [700 + 2 * count], 4, 2, 64, spread)
    attention = session(compiled_library, 4, 2, 64)
    whole, *caches = run(attention, q, k, v, past, [700 + 2 * count])
    changed = [t.clone() for t in (q, k, v)]
    for t, value in zip(changed, (0.01, 50.0, -50.0), strict=True):
        t[:, count:] = value
    other, *_ = run(attention, *changed, past, [700 + 2 * count])
    assert torch.equal(other[:, :count], whole[:, :count])
    if (count <= FEW) == (2 * count <= FEW):  # a rounding lies between few and many
        first, *_ = run(attention, *(t[:, :count] for t in (q, k, v)), past, [700 + count])
        assert torch.equal(first, whole[:, :count])
        last, *_ = run(attention, *(t[:, count:] for t in (q, k, v)), caches, [700 + 2 * count])
        assert torch.equal(last, whole[:, count:])


def test_a_row_does_not_depend_on_those_beside_it(compiled_library: Path) -> None:
    """Nor on how many share its keys: of one sequence of several, and of one head of several, to the bit."""
    q, k, v, past = case(7, 3, 90, [400, 300, 95], 4, 2, 128)
    whole, *_ = run(session(compiled_library, 4, 2, 128), q, k, v, past, [400, 300, 95])
    one = session(compiled_library, 4, 2, 128)
    for b, length in enumerate((400, 300, 95)):
        alone, *_ = run(one, *(t[b : b + 1] for t in (q, k, v)), [t[b : b + 1] for t in past], [length])
        assert torch.equal(alone[0], whole[b])
    head, *_ = run(
        session(compiled_library, 1, 1, 128),
        *(t[:1, :, :128] for t in (q, k, v)),
        [t[:1, :1].contiguous() for t in past],
        [400],
    )
    assert torch.equal(head[0], whole[0, :, :128])


@pytest.mark.parametrize("what", ["query", "key", "value", "cached key", "cached value"])
@pytest.mark.parametrize("count", [10, 70])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_reaches_those_that_see_it(
    compiled_library: Path, count: int, what: str, value: float
) -> None:
    """So that a damaged cache is noticed; tokens before it stay what they were."""
    q, k, v, past = case(8, 1, count, [300 + count], 1, 1, 64)
    attention = session(compiled_library, 1, 1, 64)
    expected, *_ = run(attention, q, k, v, past, [300 + count])
    tensor, place = {
        "query": (q, (0, 5, 3)),
        "key": (k, (0, 5, 3)),
        "value": (v, (0, 5, 3)),
        "cached key": (past[0], (0, 0, 100, 3)),
        "cached value": (past[1], (0, 0, 100, 3)),
    }[what]
    tensor[place] = value
    got, *_ = run(attention, q, k, v, past, [300 + count])
    is_none = ~torch.isfinite(got[0]).all(-1)
    wanted = torch.ones(count, dtype=torch.bool)
    if what == "query":
        wanted[:] = torch.arange(count) == 5
    elif "cached" not in what:
        wanted = torch.arange(count) >= 5
    assert torch.equal(is_none, wanted)
    assert torch.equal(got[0, ~wanted], expected[0, ~wanted])


@pytest.mark.parametrize("count", [1, 70])
def test_caches_stay_where_they_are(compiled_library: Path, count: int) -> None:
    """Bound to the same memory only new rows are written; the rest is not even read into another place."""
    q, k, v, past = case(1, 1, count, [90 + count], 2, 1, 64)
    attention = session(compiled_library, 2, 1, 64)
    expected, *caches = run(attention, q, k, v, past, [90 + count])
    binding = attention.io_binding()
    for name, t in zip(("q", "k", "v", "past_key", "past_value"), (q, k, v, *past), strict=True):
        binding.bind_input(name, "cpu", 0, np.float32, tuple(t.shape), t.data_ptr())
    lengths = np.array([89 + count], np.int32)
    binding.bind_input("seqlens_k", "cpu", 0, np.int32, (1,), lengths.ctypes.data)
    binding.bind_output("out", "cpu")
    for name, t in zip(("key", "value"), past, strict=True):
        binding.bind_output(name, "cpu", 0, np.float32, tuple(t.shape), t.data_ptr())
    attention.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], expected.numpy())
    for got, wanted in zip(past, caches, strict=True):
        assert torch.equal(got[:, :, : 90 + count], wanted[:, :, : 90 + count])


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(("dim", "shared"), [(64, 3), (128, 1), (256, 4)])
def test_rows_that_see_many_keys_are_near_what_they_should_be(
    compiled_library: Path, dim: int, shared: int, spread: float
) -> None:
    """Those that see fewer stay as exact as ever, whichever share their keys; no row depends on the cut."""
    count, before = 130, FAR - 70
    length = before + count
    q, k, v, past = case(6, 1, count, [length], shared, 1, dim, spread)
    attention = session(compiled_library, shared, 1, dim)
    out, *caches = run(attention, q, k, v, past, [length])
    expected = plain(q[0].unflatten(-1, (-1, dim)), *(cache[0, :, :length] for cache in caches), length)
    error = (out[0].unflatten(-1, (-1, dim)) - expected).flatten(1).norm(dim=1)
    wanted = expected.flatten(1).norm(dim=1)
    assert (error[:70] <= 4e-3 * wanted[:70]).all()
    assert (error[70:] <= 2e-2 * max(1.0, spread) * wanted[70:]).all()
    for first, last in ((0, 66), (64, 130)):
        part, *_ = run(attention, *(t[:, first:last] for t in (q, k, v)), caches, [before + last])
        assert torch.equal(part, out[:, first:last])


@pytest.mark.parametrize("what", ["query", "cached key", "cached value"])
def test_what_is_no_number_is_noticed_behind_many_keys(compiled_library: Path, what: str) -> None:
    q, k, v, past = case(9, 1, 80, [FAR + 80], 2, 1, 64)
    tensor, place = {
        "query": (q, (0, 5, 3)),
        "cached key": (past[0], (0, 0, 100, 3)),
        "cached value": (past[1], (0, 0, 100, 3)),
    }[what]
    tensor[place] = torch.nan
    got, *_ = run(session(compiled_library, 2, 1, 64), q, k, v, past, [FAR + 80])
    is_none = torch.isnan(got[0].unflatten(-1, (2, 64))).all(-1)
    wanted = torch.ones(80, 2, dtype=torch.bool)
    if what == "query":
        wanted[:] = False
        wanted[5, 0] = True
    assert torch.equal(is_none, wanted)


@pytest.mark.parametrize("count", [1, 70])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e9])
def test_silence_and_very_large_values_stay_finite(compiled_library: Path, count: int, size: float) -> None:
    q, k, v, past = case(2, 1, count, [100 + count], 2, 1, 64)
    out, *_ = run(session(compiled_library, 2, 1, 64), q, k, v * size, [past[0], past[1] * size], [100 + count])
    assert torch.isfinite(out).all()
    assert out.abs().max() <= 1.01 * max(v.abs().max(), past[1].abs().max()) * size


@pytest.mark.parametrize("count", [1, 70])
def test_equal_keys_share_alike_however_many(compiled_library: Path, count: int) -> None:
    q, k, v, past = case(3, 1, count, [9000 + count], 1, 1, 64)
    past[0][:], k[:] = 1.0, 1.0
    out, *present = run(session(compiled_library, 1, 1, 64), q, k, v + 1, [past[0], past[1] + 1], [9000 + count])
    expected = plain(q[0].unflatten(-1, (1, 64)), *(c[0, :, : 9000 + count] for c in present), 9000 + count)
    assert (out[0].unflatten(-1, (1, 64)) - expected).abs().max() <= 1e-3


def test_a_key_without_a_value_takes_its_share(compiled_library: Path) -> None:
    """As the first tokens of trained models do: nearly all attention goes to them, and they say nothing."""
    q, k, v, past = case(4, 1, 90, [540], 2, 1, 128)
    past[0][:, :, 0], past[1][:, :, 0] = q[0, 0, :128] * 0 + 1.5, 0.0
    q = q + 0.6
    out, *present = run(session(compiled_library, 2, 1, 128), q, k, v, past, [540])
    expected = plain(q[0].unflatten(-1, (2, 128)), *(c[0, :, :540] for c in present), 540)
    assert expected.norm() < 0.5 * v.norm()
    assert (out[0].unflatten(-1, (2, 128)) - expected).norm() <= 4e-3 * expected.norm()


def test_values_of_very_different_sizes_keep_their_precision(compiled_library: Path) -> None:
    """A channel a thousand times as large as its neighbours, in keys and in values, as trained models have."""
    q, k, v, past = case(5, 1, 90, [240], 2, 1, 128)
    for t in (k, v, *past):
        t[..., 7] *= 100
    q[..., 7::128] /= 100
    out, *present = run(session(compiled_library, 2, 1, 128), q, k, v, past, [240])
    expected = plain(q[0].unflatten(-1, (2, 128)), *(c[0, :, :240] for c in present), 240)
    assert (out[0].unflatten(-1, (2, 128)) - expected).norm() <= 2e-2 * expected.norm()


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_largest_products_do_not_overflow(compiled_library: Path, dim: int) -> None:
    """Ones in the first register of a row become ones everywhere when it is mixed: the largest sum there is."""
    ones = torch.zeros(1, 90, dim)
    ones[..., :16] = 1.0
    past = [ones[:, :1].expand(1, 300, dim)[None].clone() for _ in range(2)]
    out, *_ = run(session(compiled_library, 1, 1, dim), ones, ones, ones, past, [300])
    assert torch.allclose(out, ones, atol=1e-3)
    past[0][:, :, :150] *= -1  # the least sum: these keys are not looked at
    past[1][:, :, :150] *= -1
    out, *_ = run(session(compiled_library, 1, 1, dim), 30 * ones, ones, ones, past, [300])
    assert torch.allclose(out, ones, atol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "lengths", "reason"),
    [
        ({"q": (1, 3, 192)}, [3], "inputs"),
        ({"q": (1, 4, 128)}, [4], "inputs"),
        ({"k": (1, 2, 64)}, [3], "inputs"),
        ({"v": (1, 3, 128)}, [3], "inputs"),
        ({"past_value": (1, 1, 9, 64)}, [3], "inputs"),
        ({"past_key": (2, 1, 10, 64), "past_value": (2, 1, 10, 64)}, [3], "inputs"),
        ({"past_key": (1, 2, 10, 64), "past_value": (1, 2, 10, 64)}, [3], "inputs"),
        (
            {"q": (1, 3, 64), "k": (1, 3, 32), "v": (1, 3, 32), "past_key": (1, 1, 9, 32), "past_value": (1, 1, 9, 32)},
            [3],
            "inputs",
        ),
        ({}, [3, 3], "inputs"),
        ({}, [2], "more tokens"),
        ({}, [11], "more tokens"),
    ],
)
def test_nodes_that_are_wrong_are_refused(
    compiled_library: Path, shapes: dict[str, tuple[int, ...]], lengths: list[int], reason: str
) -> None:
    usual = {
        "q": (1, 3, 128),
        "k": (1, 3, 64),
        "v": (1, 3, 64),
        "past_key": (1, 1, 10, 64),
        "past_value": (1, 1, 10, 64),
    }
    q, k, v, *past = (torch.ones(shape) for shape in (usual | shapes).values())
    with pytest.raises(Exception, match=f"CausalAttention: {reason}"):
        run(session(compiled_library, 2, 1, 64), q, k, v, past, lengths)


@pytest.mark.parametrize(("heads", "groups"), [(3, 2), (0, 1), (1, 0), (1, 2)])
def test_heads_that_cannot_share_are_refused(compiled_library: Path, heads: int, groups: int) -> None:
    with pytest.raises(Exception, match="CausalAttention: attributes"):
        session(compiled_library, heads, groups, 64)
