"""Slots of one cache for the sequences that run, within a budget of memory.

A slot holds the keys, values and states of one sequence. Slots of sequences that decode come first and without gaps;
sequences whose prompt is still being read stand behind them.
"""

from __future__ import annotations

from collections import abc

from pocketvlm.engine.config import Sizes
from pocketvlm.engine.request import Request, Sequence
from pocketvlm.engine.runners.base import Runner
from pocketvlm.errors import PromptError
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool
from pocketvlm.model.cache.contiguous import FIRST_CAPACITY, ContiguousCache


def make_cache(runner: Runner, sizes: Sizes) -> Cache:
    """Make an empty cache of the layout, for the sequences and tokens that `sizes` allows."""
    text, on_gpu = runner.config.text, runner.device_type == "cuda"
    max_prefix_blocks = sizes.prefix_bytes // BlockPool.block_bytes(text, runner.memory)
    if sizes.layout == "paged":
        from pocketvlm.model.cache.paged import PagedCache  # brings PyTorch, whose runner alone has it

        return PagedCache(
            text,
            sizes.max_num_seqs if on_gpu else 1,
            sizes.cache_tokens // BLOCK,
            max_slots=sizes.max_num_seqs,
            max_prefix_blocks=max_prefix_blocks,
            preallocate=on_gpu,
            memory=runner.memory,
        )
    return ContiguousCache(
        text,
        1,
        min(FIRST_CAPACITY, sizes.cache_tokens),
        max_slots=sizes.max_num_seqs,
        max_tokens=sizes.cache_tokens,
        max_prefix_blocks=max_prefix_blocks,
        memory=runner.memory,
    )


class CachePool:
    """Gives the slots of a cache to sequences, and takes them back.

    Args:
        cache: whose slots are given out.

    Attributes:
        sequences: by slot; the first `decoding` of them decode.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.sequences: list[Sequence] = []
        self.decoding = 0

    @property
    def usage(self) -> float:
        """The share of the budget that slots in use hold, from 0 to 1."""
        return self.cache.usage(len(self.sequences))

    def fits(self, more: abc.Sequence[int] = ()) -> bool:
        """Say whether the budget holds all slots with all their tokens, and `more` slots of so many."""
        return self.cache.fits(self._tokens(more))

    def reserve(self, more: abc.Sequence[int] = ()) -> None:
        """Make that room, which must fit."""
        self.cache.make_room(self._tokens(more))

    def _tokens(self, more: abc.Sequence[int]) -> list[int]:
        return [*(sequence.tokens for sequence in self.sequences), *more]

    def max_new_tokens(self, request: Request) -> int:
        """Return how many tokens an answer of this request may have, by its options and the cache's size."""
        return min(request.params.max_tokens, self.cache.max_length(request.width) - request.prompt_tokens)

    def admit(self, sequence: Sequence) -> None:
        """Give a sequence the next slot, empty."""
        slot = len(self.sequences)
        assert slot < self.cache.slots, "no slot was reserved"
        self.cache.reset(slot)
        sequence.slot, sequence.computed = slot, 0
        self.sequences.append(sequence)

    def promote(self, sequence: Sequence) -> None:
        """Let a sequence whose prompt has been read join those that decode."""
        assert sequence.slot is not None
        assert sequence.slot >= self.decoding
        self._swap(sequence.slot, self.decoding)
        self.decoding += 1

    def fork(self, source: Sequence, target: Sequence) -> None:
        """Give `target` a slot among those that decode; it goes on from where `source` is."""
        self.admit(target)
        self.copy(source, target)
        self.promote(target)

    def copy(self, source: Sequence, target: Sequence, start: int = 0) -> None:
        """Make one sequence go on from where another is (`Cache.copy_slot`)."""
        assert source.slot is not None
        assert target.slot is not None
        self.cache.copy_slot(source.slot, target.slot, start)
        target.computed = source.computed

    def tokens_of_fork(self, source: Sequence, tokens: int) -> int:
        """Return how many tokens `fits` must count for a fork of `source` that will have `tokens` of them."""
        assert source.slot is not None
        return self.cache.tokens_of_copy(source.slot, tokens)

    def remove(self, sequence: Sequence, *, erase: bool = False) -> None:
        """Free a slot; the last sequences move into the gaps.

        Args:
            erase: also its keys and values, where they may not be numbers.
        """
        slot = sequence.slot
        assert slot is not None
        assert self.sequences[slot] is sequence
        if erase:
            self.cache.erase(slot)
        if slot < self.decoding:
            self.decoding -= 1
            self._move(self.decoding, slot)
            slot = self.decoding
        self._move(len(self.sequences) - 1, slot)
        self.sequences.pop()
        self.cache.release_slot(len(self.sequences))
        sequence.slot, sequence.computed = None, 0

    def _move(self, source: int, target: int) -> None:
        """Move a sequence into a slot that nobody needs."""
        if source == target:
            return
        self.cache.move_slot(source, target)
        self.sequences[target] = self.sequences[source]
        self.sequences[target].slot = target

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        self.cache.swap_slots(one, other)
        self.sequences[one], self.sequences[other] = self.sequences[other], self.sequences[one]
        self.sequences[one].slot, self.sequences[other].slot = one, other

    def check_fits(self, tokens: int, width: int) -> None:
        """Raise `PromptError` when a prompt of so many tokens, in so many slots, can never be answered."""
        if not tokens:
            raise PromptError("the prompt is empty")
        shorter = "Use a smaller picture, a lower max_slice_nums, downsample_mode='16x' or a shorter text."
        if tokens >= (context := self.cache.max_capacity):
            raise PromptError(f"the prompt has {tokens} tokens, the model's context is {context}", hint=shorter)
        if tokens + 1 > (room := self.cache.max_length(width)):
            raise PromptError(
                f"the prompt has {tokens} tokens{f' for each of {width} beams' if width > 1 else ''}, "
                f"the engine's cache has room for {room}{' for each' if width > 1 else ''}",
                hint=f"Give the engine a larger cache_memory, or: {shorter[0].lower()}{shorter[1:]}",
            )

    def check_integrity(self) -> None:
        """Check that every slot in use has one sequence, which knows it, and holds as many tokens as that says."""
        self.cache.check_integrity()
        assert 0 <= self.decoding <= len(self.sequences), "more sequences decode than run"
        for slot, sequence in enumerate(self.sequences):
            assert sequence.slot == slot, f"the sequence in slot {slot} believes in slot {sequence.slot}"
            assert sequence.computed == self.cache.lengths[slot], (
                f"slot {slot} holds {self.cache.lengths[slot]} tokens, not {sequence.computed}"
            )
            assert sequence.finish_reason is None, f"slot {slot} is held by a finished sequence"
