"""The cache: growing, forgetting and sharing change no answer, and the recurrent state belongs to the sequence."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import assert_same_decoding, packed_logits, prefill, relative_error, same_cache
from helpers.tiny_models import CONFIG, random_text, tiny_model, with_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment


def step(cache: Cache, tokens: list[int], slots: list[int]) -> torch.Tensor:
    """One token for each of these slots; logits [B, V]."""
    batch = PackedBatch.of([Segment(1, cache.lengths[slot], slot) for slot in slots])
    return tiny_model().logits(tiny_model()(torch.tensor(tokens), batch, None, cache))


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 12))
def test_growing_keeps_what_was_there(length: int, capacity: int, more: int) -> None:
    ids, tail = random_text(length), random_text(more, seed=1)
    cache = ContiguousCache(CONFIG.text, 1, capacity)
    cache.reserve(length)
    packed_logits(tiny_model(), [ids], cache)
    for i, token in enumerate(tail):
        cache.reserve(length + i + 1)
        got = step(cache, [token], [0])
    assert_same_decoding(got[0], prefill(tiny_model(), ids + tail)[-1])
    assert cache.capacity >= length + more


def test_capacity_grows_by_doubling_up_to_the_context() -> None:
    config = with_text(max_position_embeddings=50).text
    cache = ContiguousCache(config, 1, 8)
    cache.reserve(8)
    assert cache.capacity == 8
    cache.reserve(9)
    assert cache.capacity == 16
    cache.reserve(45)
    assert cache.capacity == 45
    cache.reserve(46)
    assert cache.capacity == 50
    with pytest.raises(ConfigError, match=r"51 tokens is over the model's context of 50"):
        cache.reserve(51)
    assert ContiguousCache(config, 1, 1000).capacity == 50


def test_a_slot_that_was_reset_equals_a_new_one() -> None:
    model, (old, new) = tiny_model(), (random_text(40), random_text(9, seed=3))
    used, fresh = (ContiguousCache(CONFIG.text, 2, 64) for _ in range(2))
    packed_logits(model, [old, old], used)
    used.reset(0)
    used.reset(1)
    for got, expected in zip(
        packed_logits(model, [new, old], used), packed_logits(model, [new, old], fresh), strict=True
    ):
        assert torch.equal(got, expected)
    same_cache(used, fresh, 0)
    assert torch.equal(step(used, [5], [0]), step(fresh, [5], [0]))


def test_reset_leaves_the_other_slots_alone() -> None:
    prompts = [random_text(9), random_text(30, seed=1), random_text(4, seed=2)]
    reset, kept = (ContiguousCache(CONFIG.text, 3, 64) for _ in range(2))
    for cache in (reset, kept):
        packed_logits(tiny_model(), prompts, cache)
    reset.reset(1)
    assert reset.lengths == [9, 0, 4]
    for slot in (0, 2):
        same_cache(reset, kept, slot)


def test_a_copied_slot_continues_on_its_own() -> None:
    prompt = random_text(20)
    cache = ContiguousCache(CONFIG.text, 3, 64)
    packed_logits(tiny_model(), [prompt], cache)
    cache.copy_slot(0, 2)
    both = step(cache, [1, 2], [0, 2])
    again = step(cache, [3, 4], [0, 2])
    for slot, tail in ((0, [1, 3]), (1, [2, 4])):
        expected = prefill(tiny_model(), prompt + tail)
        assert_same_decoding(both[slot], expected[-2])
        assert_same_decoding(again[slot], expected[-1])
    assert cache.lengths == [22, 0, 22]


def test_a_slot_that_holds_the_prefix_already_is_copied_from_there_on() -> None:
    prompt, tails = random_text(20), (random_text(5, seed=1), random_text(5, seed=2))
    cache, expected = (ContiguousCache(CONFIG.text, 2, 64) for _ in range(2))
    for store in (cache, expected):
        packed_logits(tiny_model(), [prompt], store)
        store.copy_slot(0, 1)
        for tokens in zip(*tails, strict=True):
            step(store, list(tokens), [0, 1])
    cache.copy_slot(0, 1, start=len(prompt))
    expected.copy_slot(0, 1)
    for slot in (0, 1):
        same_cache(cache, expected, slot)
    assert torch.equal(step(cache, [7, 7], [0, 1]), step(expected, [7, 7], [0, 1]))


def test_trap_cache_without_conv_and_recurrent_state_a_copy_holds_all_three() -> None:
    prompt = random_text(20)
    cache = ContiguousCache(CONFIG.text, 2, 64)
    packed_logits(tiny_model(), [prompt], cache)
    cache.copy_slot(0, 1)
    for name in ("conv", "recurrent"):
        for layer, tensor in getattr(cache, name).items():
            assert torch.equal(tensor[1], tensor[0]), (name, layer)
            assert tensor[1].abs().max() > 0
    expected = step(cache, [1], [0])
    for store in (cache.conv, cache.recurrent):
        for tensor in store.values():
            tensor[1].zero_()
    assert relative_error(step(cache, [1], [1]), expected) > 1e-3


def test_a_step_of_some_slots_leaves_the_others_alone() -> None:
    prompts = [random_text(9), random_text(30, seed=1), random_text(4, seed=2)]
    cache, before = (ContiguousCache(CONFIG.text, 3, 64) for _ in range(2))
    for store in (cache, before):
        packed_logits(tiny_model(), prompts, store)
    step(cache, [1, 2], [2, 0])
    same_cache(cache, before, 1)
    assert cache.lengths == [10, 30, 5]


def test_recurrent_state_is_fp32_whatever_the_dtype() -> None:
    cache = ContiguousCache(CONFIG.text, 1, 8, memory=TorchMemory(torch.bfloat16))
    assert {t.dtype for t in cache.recurrent.values()} == {torch.float32}
    assert {t.dtype for s in (cache.keys, cache.values, cache.conv) for t in s.values()} == {torch.bfloat16}


def test_every_layer_has_the_state_of_its_kind() -> None:
    cache = ContiguousCache(CONFIG.text, 2, 8)
    kinds = CONFIG.text.layer_types
    assert sorted(cache.keys) == sorted(cache.values) == [i for i, k in enumerate(kinds) if k == "full_attention"]
    assert sorted(cache.conv) == sorted(cache.recurrent) == [i for i, k in enumerate(kinds) if k == "linear_attention"]
