"""The compiled delta rule gives what the plain one gives, and leaves the state that the next tokens need."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.checkpoints import write_checkpoint
from helpers.tiny_models import random_text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize, softplus

from pocketvlm.bundle import PRESETS, Operators
from pocketvlm.engine.runners.onnx_runner import ONNXRunner, product_session
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.model.segments import Segment

FLOAT = ir.DataType.FLOAT
FEW = 65  # tokens of a sequence that are computed one by one
NAMES = ("q", "k", "v", "past", "gates", "bias", "rate")


def session(library: Path, heads: int, key_heads: int) -> Any:
    g = GraphBuilder("rule", compiled=True)
    ranks = (3, 3, 3, 4, 3, 1, 1)
    inputs = [
        g.input(name, FLOAT, tuple(f"{name}{i}" for i in range(rank))) for name, rank in zip(NAMES, ranks, strict=True)
    ]
    out, present = g.own("DeltaRule", *inputs, outputs=2, heads=heads, key_heads=key_heads)
    g.output("out", out, FLOAT, ("a", "b", "c"))
    g.output("present", present, FLOAT, ("a", "b", "c", "d"))
    return product_session(ir.to_proto(g.model()).SerializeToString(), library)


def inputs(batch: int, new: int, heads: int, key_heads: int, keys: int, values: int, seed: int = 0) -> list[Tensor]:
    """Those of `NAMES`; keys of length one, decays from next to nothing to next to all."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k = (normalize(draw(batch, new, key_heads, keys), dim=-1).flatten(2) for _ in range(2))
    v, past = draw(batch, new, heads * values), draw(batch, heads, keys, values)
    return [q, k, v, past, 3 * draw(batch, new, 2 * heads), draw(heads), -draw(heads).exp()]


def run(rule: Any, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    feed = {name: one.numpy() for name, one in zip(NAMES, given, strict=True)}
    out, present = rule.run(None, feed)
    return torch.from_numpy(out), torch.from_numpy(present)


def plain(given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """In fp64, a token at a time."""
    q, k, v, past, gates, bias, rate = (t.double() for t in given)
    heads, keys = past.shape[1], past.shape[2]
    q, k = (t.unflatten(-1, (-1, keys)).repeat_interleave(heads * keys // t.shape[-1], 2) for t in (q, k))
    v = v.unflatten(-1, (heads, -1))
    update, decay = gates[..., :heads].sigmoid(), (rate * softplus(gates[..., heads:] + bias)).exp()
    state, out = past.clone(), []
    for s in range(q.shape[1]):
        state = state * decay[:, s, :, None, None]
        change = update[:, s, :, None] * (v[:, s] - torch.einsum("bhkv,bhk->bhv", state, k[:, s]))
        state = state + k[:, s, :, :, None] * change[:, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, s]) * keys**-0.5)
    return torch.stack(out, 1).flatten(2), state


SIZES = [(1, 1, 16, 16), (2, 1, 32, 48), (4, 2, 128, 128), (3, 3, 64, 80), (2, 2, 256, 32), (2, 1, 48, 208)]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_plain_rule(compiled_library: Path, size: tuple[int, int, int, int]) -> None:
    heads, key_heads, keys, values = size
    rule = session(compiled_library, heads, key_heads)
    for batch, new in [(1, 1), (1, 2), (1, 65), (1, 66), (3, 1), (2, 151), (0, 3)]:
        given = inputs(batch, new, heads, key_heads, keys, values)
        for got, true in zip(run(rule, given), plain(given), strict=True):
            assert got.shape == true.shape
            torch.testing.assert_close(got.double(), true, rtol=0, atol=3e-6 * float(true.abs().max()) if batch else 0)


@settings(max_examples=30)
@given(new=st.integers(2, 200), cut=st.integers(1, 199), batch=st.integers(1, 2))
def test_two_chunks_are_one(compiled_library: Path, new: int, cut: int, batch: int) -> None:
    """To the bit where all are few (a draft changes no answer), otherwise sums are had in another order."""
    cut = min(cut, new - 1)
    rule = session(compiled_library, 2, 1)
    q, k, v, past, gates, *rest = inputs(batch, new, 2, 1, 32, 96, seed=new)
    whole, last = run(rule, [q, k, v, past, gates, *rest])
    parts, state = [], past
    for part in (slice(0, cut), slice(cut, new)):
        out, state = run(rule, [q[:, part], k[:, part], v[:, part], state, gates[:, part], *rest])
        parts.append(out)
    for got, true in ((torch.cat(parts, 1), whole), (state, last)):
        assert new > FEW or torch.equal(got, true)
        torch.testing.assert_close(got, true, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("new", "values"), [(0, 32), (1, 96), (1, 208), (2, 208), (65, 96), (70, 96), (70, 208)])
def test_the_state_may_be_written_where_it_is_read(compiled_library: Path, new: int, values: int) -> None:
    rule = session(compiled_library, 2, 2)
    given = inputs(2, new, 2, 2, 64, values)
    expected = run(rule, given)
    binding, state = rule.io_binding(), given[3].clone()
    for name, one in zip(NAMES, given, strict=True):
        binding.bind_cpu_input(name, one.numpy())
    place: dict[str, Any] = {"device_type": "cpu", "device_id": 0, "element_type": np.float32}
    place |= {"shape": tuple(state.shape), "buffer_ptr": state.data_ptr()}
    binding.bind_input("past", **place)
    binding.bind_output("out")
    binding.bind_output("present", **place)
    rule.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], expected[0].numpy())
    assert torch.equal(state, expected[1])


def test_sequences_and_heads_know_nothing_of_each_other(compiled_library: Path) -> None:
    rule = session(compiled_library, 2, 1)
    given = inputs(2, 5, 2, 1, 32, 32)
    before = run(rule, given)
    given[2][1, 3, 40] = torch.nan  # a value of the second sequence's second head
    out, present = run(rule, given)
    is_touched = torch.zeros_like(out, dtype=torch.bool)
    is_touched[1, 3:, 40] = True
    assert torch.equal(out.isnan(), is_touched)
    assert torch.equal(out[~is_touched], before[0][~is_touched])
    assert present.isnan().nonzero()[:, [0, 1, 3]].unique(dim=0).tolist() == [[1, 1, 8]]


def test_no_tokens_leave_the_state_as_it_was(compiled_library: Path) -> None:
    given = inputs(1, 0, 2, 1, 32, 32)
    out, present = run(session(compiled_library, 2, 1), given)
    assert out.shape == (1, 0, 64)
    assert torch.equal(present, given[3])


def test_gates_without_bounds_stay_numbers(compiled_library: Path) -> None:
    given = inputs(1, 3, 1, 1, 16, 16)
    given[4] = torch.tensor([[[200.0, -300.0], [-200.0, 300.0], [1e30, 1e30]]])
    out, present = run(session(compiled_library, 1, 1), given)
    for got, true in zip((out, present), plain(given), strict=True):
        torch.testing.assert_close(got.double(), true, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("heads", "key_heads"), [(3, 2), (1, 2), (2, 0)])
def test_heads_that_do_not_share_keys_evenly_are_refused(compiled_library: Path, heads: int, key_heads: int) -> None:
    with pytest.raises(Exception, match="DeltaRule: attributes"):
        session(compiled_library, heads, key_heads)


@pytest.mark.parametrize("place", range(len(NAMES)))
def test_inputs_that_do_not_fit_are_refused(compiled_library: Path, place: int) -> None:
    given = inputs(1, 2, 2, 1, 32, 32)
    given[place] = torch.cat([given[place], given[place]], -1)
    with pytest.raises(Exception, match="DeltaRule: inputs"):
        run(session(compiled_library, 2, 1), given)


@pytest.mark.parametrize("place", range(len(NAMES)))
def test_inputs_of_another_batch_or_rank_are_refused(compiled_library: Path, place: int) -> None:
    rule, given = session(compiled_library, 2, 1), inputs(1, 2, 2, 1, 32, 32)
    for changed in (torch.cat([given[place]] * 2), given[place][None]):
        with pytest.raises(Exception, match=r"DeltaRule: inputs|Invalid rank"):
            run(rule, [changed if i == place else one for i, one in enumerate(given)])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {"CausalConv": 3, "DeltaRule": 3}),
        ({"linear_value_head_dim": 48}, {"CausalConv": 3, "DeltaRule": 3}),
        ({"linear_value_head_dim": 24}, {"CausalConv": 3, "LinearAttention": 3}),  # no whole vectors
        ({"linear_key_head_dim": 288, "linear_value_head_dim": 144}, {"CausalConv": 3, "LinearAttention": 3}),
    ],
)
@pytest.mark.usefixtures("compiled_library")
def test_layers_that_it_cannot_compute_are_made_of_standard_operators(
    tmp_path: Path, changed: dict[str, int], expected: dict[str, int]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny", seed=0, **changed)
    ids, found = random_text(70, 3), []
    kinds: Operators
    for kinds in ("standard", "compiled"):
        write_bundle(checkpoint, tmp_path / kinds, PRESETS["int8"], operators=kinds)
        runner = ONNXRunner(tmp_path / kinds, threads=1)
        cache = runner.make_cache(1, 80)
        scores = [
            torch.as_tensor(runner.forward(runner.embed(np.array(part), None), runner.batch([segment]), cache, [0]))
            for part, segment in ((ids, Segment(70)), (ids[:1], Segment(1, 70)))
        ]
        found.append(torch.cat(scores).flatten())
    nodes = Counter(node.op_type for node in ir.load(tmp_path / "compiled" / "decoder.onnx").graph)
    assert {name: nodes[name] for name in ("CausalConv", "DeltaRule", "LinearAttention") if nodes[name]} == expected
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.999


def test_wider_keys_than_it_has_room_for_are_refused(compiled_library: Path) -> None:
    with pytest.raises(Exception, match="DeltaRule: inputs"):
        run(session(compiled_library, 1, 1), inputs(1, 2, 1, 1, 272, 16))
