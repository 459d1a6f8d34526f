"""The decoder: sequences packed without padding, cut anywhere, decoded step by step, all equal to one plain forward."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import (
    assert_close,
    assert_same_decoding,
    batch_of_one_equals_inside_a_batch,
    cached_decode_equals_full_forward,
    packed_equals_separate,
    packed_logits,
    prefill,
    prefill_in_chunks_equals_one_forward,
    relative_error,
)
from helpers.tiny_models import (
    CONFIG,
    prompt_with_views,
    random_patches,
    random_text,
    tiny_model,
    view,
    view_lists,
    with_text,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.text.norm import GatedRMSNorm, ZeroCentredRMSNorm
from pocketvlm.model.text.rotary import apply_rotary, rotary_cos_sin
from pocketvlm.views import View

LENGTHS = st.lists(st.sampled_from([1, 2, 3, 5, 17, 63, 64, 65, 80]), min_size=1, max_size=4)


def prompts_of(lengths: list[int]) -> list[list[int]]:
    return [random_text(n, seed=10 * b + n) for b, n in enumerate(lengths)]


@settings(max_examples=15)
@given(LENGTHS)
def test_packed_equals_separate(lengths: list[int]) -> None:
    packed_equals_separate(tiny_model(), prompts_of(lengths))


@settings(max_examples=15)
@given(st.integers(2, 90).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n - 1), max_size=4))))
def test_prefill_in_chunks_equals_one_forward(case: tuple[int, list[int]]) -> None:
    prefill_in_chunks_equals_one_forward(tiny_model(), random_text(case[0]), case[1])


@settings(max_examples=15)
@given(LENGTHS, st.integers(1, 6))
def test_cached_decode_equals_full_forward(lengths: list[int], steps: int) -> None:
    more = [random_text(steps, seed=b + 1) for b in range(len(lengths))]
    cached_decode_equals_full_forward(tiny_model(), prompts_of(lengths), more)


@settings(max_examples=8)
@given(LENGTHS)
def test_batch_of_one_equals_inside_a_batch(lengths: list[int]) -> None:
    batch_of_one_equals_inside_a_batch(tiny_model(), prompts_of(lengths), tokens=8)


@settings(max_examples=10)
@given(view_lists(max_size=3), st.data())
def test_trap_chunked_prefill_a_cut_inside_a_picture_changes_nothing(views: list[View], data: st.DataObject) -> None:
    model, ids = tiny_model(), prompt_with_views(views)
    embeddings = model.embed(torch.tensor(ids), model.encode_views(random_patches(views), views))
    places = [i for i, token in enumerate(ids) if token == CONFIG.image_token_id]
    cut = data.draw(st.sampled_from(places))
    prefill_in_chunks_equals_one_forward(model, ids, [cut], embeddings)


def test_continued_and_fresh_segments_share_a_forward() -> None:
    model, (long, short) = tiny_model(), prompts_of([70, 9])
    cache = ContiguousCache(CONFIG.text, 2, 128)
    model(torch.tensor(long[:66]), PackedBatch.of([Segment(66)]), None, cache)
    batch = PackedBatch.of([Segment(9, 0, 1), Segment(4, 66, 0)])
    logits = model.logits(model(torch.tensor(short + long[66:]), batch, None, cache))
    assert_same_decoding(logits[:9], prefill(model, short))
    assert_same_decoding(logits[9:], prefill(model, long)[66:])


def test_slots_in_any_order_and_with_gaps() -> None:
    model, prompts = tiny_model(), prompts_of([5, 30, 12])
    cache, slots = ContiguousCache(CONFIG.text, 6, 64), [4, 0, 2]
    packed = PackedBatch.of([Segment(len(p), slot=s) for p, s in zip(prompts, slots, strict=True)])
    model(torch.tensor([i for p in prompts for i in p]), packed, None, cache)
    step = PackedBatch.of([Segment(1, len(p), s) for p, s in zip(prompts, slots, strict=True)])
    logits = model.logits(model(torch.tensor([7, 8, 9]), step, None, cache))
    for row, prompt, token in zip(logits, prompts, (7, 8, 9), strict=True):
        assert_same_decoding(row, prefill(model, [*prompt, token])[-1])
    assert cache.lengths == [31, 0, 13, 0, 6, 0]


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_trap_packed_samples_leak_changing_one_leaves_the_others_alone(changed: int) -> None:
    model, prompts = tiny_model(), prompts_of([20, 65, 3])
    other = [random_text(len(p), seed=77) if b == changed else p for b, p in enumerate(prompts)]
    for b, (before, after) in enumerate(zip(packed_logits(model, prompts), packed_logits(model, other), strict=True)):
        assert torch.equal(before, after) == (b != changed)


def test_trap_left_padding_leaks_there_is_no_padding_to_leak() -> None:
    # Only real tokens go through the layers: what a linear layer gets has as many rows as there are tokens.
    model, prompts, rows = tiny_model(), prompts_of([1, 40, 7]), []
    hooks = [
        layer.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
        for layer in model.language_model.layers
    ]
    try:
        packed_logits(model, prompts)
    finally:
        for hook in hooks:
            hook.remove()
    assert rows == [48] * CONFIG.text.num_hidden_layers


def test_trap_grid_rope_positions_are_plain_counts_through_pictures() -> None:
    ids = prompt_with_views([view(8, 8), view(4, 8, "4x")])
    assert torch.equal(PackedBatch.of([Segment(len(ids))]).positions, torch.arange(len(ids)))


def test_positions_are_an_input_of_the_decoder() -> None:
    model, ids = tiny_model(), random_text(12)
    batch, x = PackedBatch.of([Segment(12)]), model.embed(torch.tensor(random_text(12)))
    plain = model.language_model(x, batch.positions, batch)
    assert_same_decoding(plain, model(torch.tensor(ids), batch))
    # Rotary angles are relative: a common offset is invisible, another spacing is not.
    assert_same_decoding(model.language_model(x, batch.positions + 100, batch), plain)
    assert relative_error(model.language_model(x, batch.positions * 3, batch), plain) > 1e-3


def test_a_later_token_never_changes_an_earlier_one() -> None:
    model, ids = tiny_model(), random_text(70)
    changed = [*ids[:66], *random_text(4, seed=5)]
    assert_same_decoding(prefill(model, changed)[:66], prefill(model, ids)[:66])


@pytest.mark.parametrize(
    "changes",
    [
        {"linear_num_value_heads": 2},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"linear_conv_kernel_dim": 2},
        {"partial_rotary_factor": 0.5},
        {"tie_word_embeddings": False},
        {"layer_types": ("full_attention",) * 4},
        {"layer_types": ("linear_attention",) * 4},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_other_shapes_keep_the_invariants(changes: dict[str, object]) -> None:
    model, prompts = tiny_model(1, with_text(**changes)), prompts_of([5, 66])
    packed_equals_separate(model, prompts)
    prefill_in_chunks_equals_one_forward(model, prompts[1], [1, 30])
    cached_decode_equals_full_forward(model, prompts, [[1, 2, 3]] * 2)


def test_partial_rotary_turns_the_leading_dimensions_only_and_keeps_lengths() -> None:
    x = torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(4))
    turned = apply_rotary(x, *rotary_cos_sin(torch.arange(6), 8, 1e7))
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert torch.equal(turned[0], x[0])
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert relative_error(turned[1:, :, :8], x[1:, :, :8]) > 0.1


def test_rotary_keeps_its_phase_at_the_end_of_the_context() -> None:
    positions = torch.tensor([262_143, 262_139])
    cos, sin = rotary_cos_sin(positions, 64, 1e7)
    exact = positions.double()[:, None] * 1e7 ** -(torch.arange(0, 64, 2).double() / 64)
    assert_close(cos, exact.cos(), 0.05)
    assert_close(sin, exact.sin(), 0.05)


def test_decoder_norm_is_zero_centred_and_the_gated_norm_is_plain() -> None:
    x, gate = torch.randn(3, 16), torch.randn(3, 16)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    centred, plain = ZeroCentredRMSNorm(16, 1e-6), GatedRMSNorm(16, 1e-6)
    with torch.no_grad():
        centred.weight.fill_(0.5)
        plain.weight.fill_(0.5)
        assert_close(centred(x), unit * 1.5)
        assert_close(plain(x, gate), unit * 0.5 * F.silu(gate))


def test_features_go_to_picture_and_video_places_in_order() -> None:
    model, config = tiny_model(), CONFIG
    features = torch.arange(3.0)[:, None].expand(3, config.text.hidden_size)
    ids = torch.tensor([1, config.image_token_id, 2, config.video_token_id, config.image_token_id])
    embedded = model.embed(ids, features)
    assert torch.equal(embedded[[1, 3, 4]], features)
    assert torch.equal(embedded[[0, 2]], model.embed(torch.tensor([1, 2])))


def test_trap_image_token_for_video_features_reach_the_video_places() -> None:
    views = [view(8, 8)]
    features = tiny_model().encode_views(random_patches(views), views)
    ids = prompt_with_views(views)
    as_video = [CONFIG.video_token_id if i == CONFIG.image_token_id else i for i in ids]
    assert_close(prefill(tiny_model(), as_video, features), prefill(tiny_model(), ids, features), 0.0)
    assert relative_error(prefill(tiny_model(), as_video), prefill(tiny_model(), as_video, features)) > 0.01


def test_a_gate_that_is_closed_lets_nothing_of_full_attention_through() -> None:
    decoder = tiny_model(0).language_model
    attention = next(layer.self_attn for layer in decoder.layers if not layer.is_linear)
    batch = PackedBatch.of([Segment(5)])
    rotary = rotary_cos_sin(batch.positions, decoder.config.rotary_dim, decoder.config.rope_theta)
    x, residual = torch.ones(2, 5, decoder.config.hidden_size)
    open_ = attention(x, rotary, batch, None, residual)
    gates = attention.q_proj.weight.data.unflatten(0, (attention.heads, 2, attention.head_dim))[:, 1]
    gates.fill_(-100.0)
    assert torch.equal(attention(x, rotary, batch, None, residual), residual)
    assert not torch.equal(open_, residual)
