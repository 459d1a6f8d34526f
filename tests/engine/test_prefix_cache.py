"""A hit gives what a miss gives, number for number; what differs in anything that matters is no hit."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engine_runs import LAYOUTS, drive, make_request, torch_runner
from helpers.invariants import TIE
from helpers.tiny_models import CONFIG, random_patches, random_text, tiny_model, view
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine import request as request_module
from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.prefix_cache import Prefix, PrefixCache
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.prompt_layout import PromptLayout
from pocketvlm.engine.request import Request, view_key
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.block_pool import BLOCK, BlockPool, blocks_for
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.memory import Array, HostMemory
from pocketvlm.model.cache.paged import PagedCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment

PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=2)


@pytest.fixture(scope="module", params=LAYOUTS)
def runner(request: pytest.FixtureRequest) -> TorchRunner:
    return torch_runner(tiny_model(0), request.param)


def prompt(
    runner: TorchRunner,
    question: int = 0,
    pictures: tuple[tuple[int, Any], ...] = (),
    *,
    pad: int | None = None,
    salt: bytes = b"",
    system: int = 100,
) -> Request:
    """A system prompt of 40 tokens, pictures (seed, rate), a question of 15."""
    ids, points, views = random_text(40, system), [40], []
    for _, mode in pictures:
        views.append(view(8, 8, mode))
        ids += [runner.config.image_token_id if pad is None else pad] * views[-1].visual_tokens + [9]
        points.append(len(ids))
    ids += random_text(15, question)
    patches = [random_patches([one], seed) for one, (seed, _) in zip(views, pictures, strict=True)]
    return make_request(
        runner,
        ids,
        PARAMS,
        frozenset(),
        torch.cat(patches) if patches else None,
        views,
        branch_points=tuple(points),
        salt=salt,
    )


def answer(engine: Engine, request: Request) -> list[Any]:
    """Tokens and log probabilities, to the last bit."""
    engine.add(request)
    outputs: list[Any] = []
    drive(engine, lambda output: outputs.append((output.tokens, output.logprobs, output.finish_reason)))
    return outputs


KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "picture": {"pictures": ((1, "16x"),)},
    "picture at 4x": {"pictures": ((1, "4x"),)},
    "several pictures, both rates": {"pictures": ((1, "16x"), (2, "4x"), (3, "16x"))},
    "video": {"pictures": ((1, "16x"), (2, "16x")), "pad": CONFIG.video_token_id},
    "adapter": {"pictures": ((1, "16x"),), "salt": b"adapter-a"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_is_a_miss_number_for_number(runner: TorchRunner, kind: str) -> None:
    engine = Engine(runner)
    first = prompt(runner, 0, **KINDS[kind])
    missed = answer(engine, first)
    assert first.cached_tokens == 0
    encoded = engine.metrics.value("encoded_views_total")
    again, other = prompt(runner, 0, **KINDS[kind]), prompt(runner, 1, **KINDS[kind])
    assert answer(engine, again) == missed
    assert again.cached_tokens == len(again.input_ids) - 15
    found = answer(engine, other)
    assert other.cached_tokens == len(other.input_ids) - 15
    assert found == answer(Engine(runner), prompt(runner, 1, **KINDS[kind]))
    assert engine.metrics.value("encoded_views_total") == encoded


OTHER: dict[str, dict[str, Any]] = {
    "another picture": {"pictures": ((2, "16x"),)},
    "the same picture at 4x": {"pictures": ((1, "4x"),)},
    "another order": {"pictures": ((2, "16x"), (1, "16x"))},
    "as a video": {"pictures": ((1, "16x"),), "pad": CONFIG.video_token_id},
    "with an adapter": {"pictures": ((1, "16x"),), "salt": b"adapter-a"},
    "with another system prompt": {"pictures": ((1, "16x"),), "system": 101},
}


@pytest.mark.parametrize("kind", OTHER)
def test_trap_first_picture_answers_for_the_second_what_differs_is_no_hit(runner: TorchRunner, kind: str) -> None:
    engine = Engine(runner)
    answer(engine, prompt(runner, 0, ((1, "16x"),)))
    other = prompt(runner, 0, **OTHER[kind])
    got = answer(engine, other)
    assert other.cached_tokens in (0, 40)  # of the system prompt alone
    expected = answer(Engine(runner, EngineConfig()), prompt(runner, 0, **OTHER[kind]))
    if kind != "another order":
        assert got == expected
        return
    # One of its pictures was encoded before, alone: the other is encoded in another shape than both together.
    for (tokens, (logprobs, *_), reason), (others, (expected_logprobs, *_), same) in zip(got, expected, strict=True):
        assert (tokens, reason) == (others, same)
        assert logprobs[0] == pytest.approx(expected_logprobs[0], rel=TIE)


def test_trap_whole_prompts_found_leave_nothing_to_compute(runner: TorchRunner) -> None:
    engine = Engine(runner)
    request = prompt(runner)
    request.branch_points = (40, len(request.input_ids))
    missed = answer(engine, request)
    again = prompt(runner)
    again.branch_points = (40, len(again.input_ids))
    assert answer(engine, again) == missed
    assert again.cached_tokens == 40


def test_trap_keys_without_states_a_hit_continues_the_recurrence(runner: TorchRunner) -> None:
    """With the states of a hit erased, the answer would be another: they matter, and they are restored."""
    engine = Engine(runner)
    missed = answer(engine, prompt(runner))
    with torch.inference_mode():
        for prefix in engine.prefixes.prefixes.values():
            for tensor in prefix.state:
                tensor.zero_()
    assert answer(engine, prompt(runner)) != missed


def test_a_picture_in_two_requests_is_encoded_once_also_while_the_first_is_in_flight(runner: TorchRunner) -> None:
    engine = Engine(runner, EngineConfig(prefix_cache_memory=0))
    for question in range(4):
        engine.add(prompt(runner, question, ((1, "16x"), (2, "4x"))))
    drive(engine)
    assert engine.metrics.value("encoded_views_total") == 2


def digests(request: Request, points: tuple[int, ...] | None = None) -> Sequence[bytes]:
    """Of prefixes of a request's prompt: of those where it may branch, or of others."""
    return PromptLayout.of(
        request.input_ids,
        request.views,
        request.view_keys,
        placeholder_ids=request.placeholder_ids,
        branch_points=request.branch_points if points is None else points,
        salt=request.salt,
    ).digests


def test_digests_depend_on_what_is_before_the_point_only(runner: TorchRunner) -> None:
    one, other = prompt(runner, 0, ((1, "16x"), (2, "16x"))), prompt(runner, 5, ((1, "16x"), (3, "16x")))
    a, b = digests(one), digests(other)
    assert a[:2] == b[:2]
    assert a[2] != b[2]
    # Whichever points are asked about, the digest of each is the same.
    for point, digest in zip(one.branch_points, a, strict=True):
        assert digests(one, (point,)) == [digest]
    assert len({*a, *digests(prompt(runner, salt=b"x"), (40,))}) == 4


def test_trap_tokens_whose_bytes_are_a_pictures_key_are_not_that_picture(runner: TorchRunner) -> None:
    picture = prompt(runner, 0, ((1, "16x"),))
    ids, first = picture.input_ids.tolist(), picture.input_ids.tolist().index(runner.config.image_token_id)
    key = np.frombuffer(picture.view_keys[0], np.int64).tolist()
    text = make_request(runner, [*ids[:first], *key, *ids[first:]], PARAMS)
    point = first + 1
    assert digests(picture, (point,)) != digests(text, (point + len(key),))


def small_cache(layout: str, tokens: int) -> Cache:
    """Of two slots, the first with so many random tokens; prefixes have more blocks than they may use."""
    text, generator = CONFIG.text, torch.Generator().manual_seed(0)
    cache: Cache
    if layout != "paged":
        memory = HostMemory() if layout == "of NumPy" else None
        cache = ContiguousCache(text, 2, tokens, max_prefix_blocks=100, memory=memory)
    else:
        cache = PagedCache(text, 2, 2 * blocks_for(tokens))
        cache.extend(PackedBatch.of([Segment(tokens)]))
    for store in (cache.keys, cache.values, cache.conv, cache.recurrent):
        for tensor in store.values():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor[...] = noise.numpy() if layout == "of NumPy" else noise
    return cache


def contents(cache: Cache, slot: int, length: int) -> list[Array]:
    """Keys, values and states of a slot."""
    stores = [x for store in (cache.keys, cache.values) for x in store.values()]
    if isinstance(cache, PagedCache):
        kept = [x[cache.table(slot)].transpose(0, 1).flatten(1, 2)[:, :length] for x in stores]
    else:
        kept = [cache.memory.copy(x[slot, :, :length]) for x in stores]
    return kept + cache.save_state(slot)


@pytest.mark.parametrize("layout", ["contiguous", "of NumPy", "paged"])
@settings(max_examples=50)
@given(
    cuts=st.lists(st.integers(1, 150), min_size=1, max_size=12, unique=True),
    budget=st.sampled_from([0, 100_000, 400_000, 10**7]),
)
def test_blocks_are_shared_counted_and_given_back(layout: str, cuts: list[int], budget: int) -> None:
    cache = small_cache(layout, 160)
    prefixes = PrefixCache(cache, budget)
    parent = None
    expected = {length: contents(cache, 0, length) for length in cuts}
    # From the longest: a slot of blocks that is made shorter lets go of what is behind.
    for length in sorted(cuts, reverse=layout == "paged"):
        cache.restore_state(0, cache.save_state(0), length)
        parent = prefixes.store(length.to_bytes(4, "big"), 0, parent)
        prefixes.check_integrity()
    for length in cuts:
        if (found := prefixes.find([length.to_bytes(4, "big")])) is None:
            continue
        prefixes.restore(found, 1)
        prefixes.check_integrity()
        assert cache.lengths[1] == length
        assert all((a == b).all() for a, b in zip(contents(cache, 1, length), expected[length], strict=True))
    if budget == 10**7:
        assert len(prefixes.prefixes) == len(cuts)
        assert len(prefixes.holding) <= sum(-(-length // BLOCK) for length in cuts)
    prefixes.clear()
    for slot in range(2):
        cache.release_slot(slot)
    prefixes.check_integrity()
    assert cache.blocks.used == 0


@pytest.mark.parametrize("layout", ["contiguous", "of NumPy", "paged"])
def test_trap_a_parent_that_was_evicted_shares_no_blocks_with_who_has_its_digest_now(layout: str) -> None:
    cache, length = small_cache(layout, 160), 3 * BLOCK
    prefixes, expected = PrefixCache(cache, 10**7), contents(cache, 0, length)
    cache.restore_state(0, cache.save_state(0), length)
    whole = prefixes.store(b"whole", 0)
    assert whole is not None
    stale = Prefix(b"parent", 2 * BLOCK, whole.blocks[1::-1], whole.state)  # its blocks are another's by now
    cache.restore_state(0, cache.save_state(0), 2 * BLOCK)
    assert prefixes.store(b"parent", 0) is not None
    prefixes.restore(whole, 0)
    made = prefixes.store(b"child", 0, stale)
    assert made is not None
    prefixes.check_integrity()
    prefixes.restore(made, 1)
    assert all((a == b).all() for a, b in zip(contents(cache, 1, length), expected, strict=True))


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache, keys = small_cache("contiguous", 40), (b"first", b"second", b"third")
    prefixes = PrefixCache(cache, 10**7)
    cache.restore_state(0, cache.save_state(0), 40)
    features = EncoderCache(2 * 4 * 8)
    for key in keys:
        if key == keys[2]:
            prefixes.budget = prefixes.used_bytes  # of two
            assert prefixes.find([keys[0]]) is not None
            assert features[keys[0]] is not None
        prefixes.store(key, 0)
        features.add(key, torch.zeros(1, 8))
    assert set(prefixes.prefixes) == set(features.features) == {keys[0], keys[2]}


def test_trap_states_outlive_their_budget_in_requests_that_have_ended(runner: TorchRunner) -> None:
    """Requests and their sequences name each other, so they wait for the collector: what is large must not."""
    engine, request = Engine(runner), prompt(runner, 0, ((1, "16x"),))
    patches = weakref.ref(request.patches)  # type: ignore[arg-type]
    gc.collect()
    gc.disable()
    try:
        answer(engine, request)
        states = [weakref.ref(prefix) for prefix in engine.prefixes.prefixes.values()]
        assert states
        engine.prefixes.clear()
        assert all(state() is None for state in states)
        assert patches() is None
    finally:
        gc.enable()
    assert request.is_finished


def test_a_block_cannot_be_given_back_twice() -> None:
    blocks = BlockPool(CONFIG.text, 4, HostMemory())
    taken = blocks.allocate(3)
    assert taken is not None
    assert blocks.allocate(2) is None
    blocks.retain(taken[:1])
    blocks.release(taken)
    assert blocks.used == 1
    blocks.release(taken[:1])
    with pytest.raises(AssertionError, match="is free"):
        blocks.release(taken[:1])


def test_features_within_their_budget_stay_while_they_are_pinned() -> None:
    features = EncoderCache(2 * 4 * 8)
    for i in range(4):
        features.pin([bytes([i])])
        features.add(bytes([i]), torch.zeros(1, 8))
    features.check_integrity()
    assert len(features.features) == 4  # over the budget, but all are needed
    features.unpin([bytes([0]), bytes([1]), bytes([3])])
    assert features.used_bytes == 2 * 4 * 8
    assert bytes([2]) in features
    features.unpin([bytes([2])])
    features.clear()
    assert features.used_bytes == 0


@pytest.mark.parametrize("name", ["sha256", "blake2b"])
def test_keys_of_views_frame_what_they_hash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "_hash", lambda: getattr(hashlib, name))
    patches = random_patches([view(4, 8)], 0).numpy()
    keys = {
        view_key(patches, view(4, 8)),
        view_key(patches, view(8, 4)),
        view_key(patches, view(4, 8, "4x")),
        view_key(random_patches([view(4, 8)], 1).numpy(), view(4, 8)),
    }
    assert len(keys) == 4
    assert {len(key) for key in keys} == {24}
    assert view_key(patches.copy(), view(4, 8)) in keys
    white, also_white = np.full((32, 14, 14, 3), 255, np.uint8), np.full((8, 28, 14, 6), 255, np.uint8)
    assert view_key(white, view(4, 8)) != view_key(also_white, view(2, 4))
