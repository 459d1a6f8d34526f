"""A paged cache gives what a contiguous one gives, whatever is forked, moved or given back; nothing leaks."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import assert_same_decoding, packed_logits, prefill
from helpers.tiny_models import CONFIG, random_text, tiny_model
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pocketvlm.errors import ConfigError
from pocketvlm.model.cache.block_pool import BLOCK, blocks_for
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.paged import PagedCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment

SLOTS, TOKENS = 4, 3 * BLOCK
SLOT = st.integers(0, SLOTS - 1)


def blocks(cache: PagedCache, slot: int) -> list[torch.Tensor]:
    """Keys and values of a slot, one after the other."""
    table, length = cache.table(slot), cache.lengths[slot]
    stores = (*cache.keys.values(), *cache.values.values())
    return [store[table].transpose(0, 1).flatten(1, 2)[:, :length] for store in stores]


class SameAsContiguous(RuleBasedStateMachine):
    """Every operation on both; token ids of each slot are remembered."""

    @initialize(spare=st.integers(0, 4), first=st.integers(1, SLOTS), preallocate=st.booleans())
    def begin(self, spare: int, first: int, preallocate: bool) -> None:
        limit = SLOTS * blocks_for(TOKENS) + spare
        self.paged = PagedCache(CONFIG.text, SLOTS if preallocate else first, limit, preallocate=preallocate)
        self.paged.resize(SLOTS, TOKENS, 0)
        self.plain = ContiguousCache(CONFIG.text, SLOTS, TOKENS)
        self.ids: list[list[int]] = [[] for _ in range(SLOTS)]
        self.seed = 0

    def forward(self, new: dict[int, int]) -> None:
        """So many new tokens for each of these slots, in both caches."""
        new = {slot: min(count, TOKENS - len(self.ids[slot])) for slot, count in new.items()}
        new = {slot: count for slot, count in new.items() if count > 0}
        if not new:
            return
        segments, tokens = [], []
        for slot, count in new.items():
            self.seed += 1
            segments.append(Segment(count, len(self.ids[slot]), slot))
            tokens.append(random_text(count, self.seed))
        batch, model = PackedBatch.of(segments), tiny_model()
        packed = torch.tensor([token for part in tokens for token in part])
        expected = model(packed, batch, None, self.plain)
        held = self.paged.held_with({s.slot: s.start + s.length for s in segments})
        assert_same_decoding(model(packed, batch, None, self.paged), expected)
        assert self.paged.held == held  # what the scheduler was told would come
        for segment, part in zip(segments, tokens, strict=True):
            self.ids[segment.slot] = self.ids[segment.slot] + part

    @rule(slots=st.lists(SLOT, min_size=1, max_size=SLOTS, unique=True), seed=st.integers(1, 40))
    def read(self, slots: list[int], seed: int) -> None:
        self.forward({slot: 1 + (seed * (slot + 3)) % 40 for slot in slots})

    @rule(slots=st.lists(SLOT, min_size=1, max_size=SLOTS, unique=True))
    def step(self, slots: list[int]) -> None:
        self.forward(dict.fromkeys(slots, 1))

    @rule(here=SLOT, there=SLOT)
    def fork(self, here: int, there: int) -> None:
        if here != there:
            for cache in (self.plain, self.paged):
                cache.copy_slot(here, there)
            self.ids[there] = self.ids[here]

    @rule(one=SLOT, other=SLOT)
    def swap(self, one: int, other: int) -> None:
        for cache in (self.plain, self.paged):
            cache.swap_slots(one, other)
        self.ids[one], self.ids[other] = self.ids[other], self.ids[one]

    @rule(here=SLOT, there=SLOT)
    def move(self, here: int, there: int) -> None:
        if here != there:
            for cache in (self.plain, self.paged):
                cache.move_slot(here, there)
                cache.reset(here)
            self.ids[there], self.ids[here] = self.ids[here], []

    @rule(slot=SLOT, drafted=st.integers(1, 40))
    def draft_and_go_back(self, slot: int, drafted: int) -> None:
        states = [cache.save_state(slot) for cache in (self.plain, self.paged)]
        ids = self.ids[slot]
        self.forward({slot: drafted})
        for cache, state in zip((self.plain, self.paged), states, strict=True):
            cache.restore_state(slot, state, len(ids))
        self.ids[slot] = ids

    @rule(slot=SLOT, erase=st.booleans())
    def forget(self, slot: int, erase: bool) -> None:
        for cache in (self.plain, self.paged):
            (cache.erase if erase else cache.reset)(slot)
        self.ids[slot] = []

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "paged"):
            return
        self.paged.check_integrity()
        assert self.paged.blocks.used == self.paged.held
        assert self.paged.lengths == self.plain.lengths == [len(ids) for ids in self.ids]
        for slot, length in enumerate(self.plain.lengths):
            if not length:
                continue
            stores = (*self.plain.keys.values(), *self.plain.values.values())
            for got, expected in zip(blocks(self.paged, slot), stores, strict=True):
                assert_same_decoding(got, expected[slot, :, :length])
            for got, expected in zip(self.paged.save_state(slot), self.plain.save_state(slot), strict=True):
                assert_same_decoding(got, expected)


SameAsContiguous.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestSameAsContiguous = SameAsContiguous.TestCase


def test_forks_share_all_blocks_until_one_of_them_writes() -> None:
    cache, ids = PagedCache(CONFIG.text, 3, 8), random_text(BLOCK + 5)
    packed_logits(tiny_model(), [ids], cache)
    cache.copy_slot(0, 1)
    cache.copy_slot(0, 2)
    assert cache.held == 2
    for slot, held in ((1, 3), (0, 4), (2, 4)):  # the last finds the block its own
        batch = PackedBatch.of([Segment(1, len(ids), slot)])
        got = tiny_model().logits(tiny_model()(torch.tensor([slot]), batch, None, cache))
        assert cache.held == held
        assert_same_decoding(got[0], prefill(tiny_model(), [*ids, slot])[-1])


def test_trap_a_nan_of_whom_a_block_was_before_reaches_nobody() -> None:
    cache, ids = PagedCache(CONFIG.text, 1, 2), random_text(20)
    packed_logits(tiny_model(), [random_text(2 * BLOCK)], cache)
    cache.erase(0)
    for store in (*cache.keys.values(), *cache.values.values()):
        store.fill_(float("nan"))
    packed_logits(tiny_model(), [ids], cache)
    got = tiny_model().logits(tiny_model()(torch.tensor([7]), PackedBatch.of([Segment(1, 20)]), None, cache))
    assert_same_decoding(got[0], prefill(tiny_model(), [*ids, 7])[-1])


def test_blocks_that_run_out_are_an_error_and_after_clearing_all_are_free() -> None:
    cache = PagedCache(CONFIG.text, 2, 3)
    packed_logits(tiny_model(), [random_text(2 * BLOCK)], cache)
    batch = PackedBatch.of([Segment(2 * BLOCK, 0, 1)])
    with pytest.raises(ConfigError, match="3 blocks of 32 tokens, and all are in use"):
        tiny_model()(torch.tensor(random_text(2 * BLOCK)), batch, None, cache)
    cache.clear()
    cache.check_integrity()
    assert cache.blocks.used == cache.held == 0
    cache.reset(0)
    (got,) = packed_logits(tiny_model(), [ids := random_text(3 * BLOCK)], cache)
    assert_same_decoding(got, prefill(tiny_model(), ids))
