"""What must not change an answer, one function for each: the checks that every engine and every fast path must pass.

Names say the invariant. Each takes a model and raises an AssertionError that says how far apart the two sides are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View

# Every bound on fp32 numbers in the tests comes from here. Processors add in other orders and round in other places, so
# a bound is what any of them may do, with room, and still far under what a mistake makes.

# Of the largest value. Two orders of the same fp32 sums differ by about 1e-6 over a kernel or a tower of a few layers.
TOLERANCE = 1e-5
# Linear attention ends in a norm: where query and key of a first token are nearly at right angles, its output is nearly
# zero and the norm magnifies the last digits of that token, to 1e-4 on some processors. A leak or a lost state is off
# by 1e-3 and more. All but such tokens are near, so what is wrong everywhere by a little shows in the mean square.
DECODER_TOLERANCE = 5e-4
DECODER_RMS = 5e-5
# Two best scores as near as this, in units of the largest, may swap: each may be off by what rounding makes of it.
TIE = DECODER_TOLERANCE


def rounding(additions: int, dtype: torch.dtype = torch.float32) -> float:
    """What rounding may make of a sum of so many products in fp32, kept in `dtype`, in units of the largest value.

    Each addition is off by up to half an eps, up as often as down: together the root of their number. Twice two of
    them, for the order of another processor and for the largest of many sums.
    """
    kept = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    return 2 * torch.finfo(torch.float32).eps * additions**0.5 + kept


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected value."""
    got, expected = got.detach(), expected.detach()
    assert got.shape == expected.shape, f"{tuple(got.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(got).all(), "NaN or infinity"
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((got.double() - expected.double()).abs().max() / scale)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal but for rounding, relative to the largest value."""
    error = relative_error(got, expected)
    assert error <= tolerance, f"relative error {error:.2e} is over {tolerance:.0e}"


def assert_same_decoding(got: Tensor, expected: Tensor) -> None:
    """Logits, hidden states or states of the decoder are equal but for rounding."""
    assert_close(got, expected, DECODER_TOLERANCE)
    got, expected = got.detach().double(), expected.detach().double()
    typical = (got - expected).square().mean().sqrt() / expected.abs().max().clamp_min(1e-30)
    assert typical <= DECODER_RMS, f"relative error {typical:.2e} in the mean square is over {DECODER_RMS:.0e}"


def assert_as_exact(got: Tensor, twin: Tensor, truth: Tensor, additions: int) -> None:
    """A fast path has at most twice the error of its plain twin, and what rounding makes of it: where the twin happens
    to be right to the last bit, twice its error would ask for more than fp32 has.

    Args:
        truth: in fp64.
        additions: in the longest sum of one result.
    """
    assert got.dtype == twin.dtype
    error, limit = relative_error(got, truth), 2 * relative_error(twin, truth) + rounding(additions, got.dtype)
    assert error <= limit, f"relative error {error:.2e} is over {limit:.2e}"


def is_tie(scores: Tensor) -> bool:
    """Whether rounding may decide which of the scores [V] is the best."""
    best = scores.topk(2).values
    return bool(best[0] - best[1] <= TIE * scores.abs().max())


def prefill(model: MiniCPMV, ids: Sequence[int], features: Tensor | None = None) -> Tensor:
    """Logits [T, V] of one sequence in one forward without a cache."""
    return model.logits(model(torch.tensor(ids), PackedBatch.of([Segment(len(ids))]), features))


def packed_logits(
    model: MiniCPMV, sequences: Sequence[Sequence[int]], cache: Cache | None = None, features: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Logits of several sequences in one forward, sequence b in cache slot b."""
    batch = PackedBatch.of([Segment(len(ids), slot=slot) for slot, ids in enumerate(sequences)])
    logits = model.logits(model(torch.tensor([i for ids in sequences for i in ids]), batch, features, cache))
    return logits.split(batch.lengths)


def packed_equals_separate(model: MiniCPMV, sequences: Sequence[Sequence[int]]) -> None:
    """Sequences packed into one forward, with and without a cache, get what each gets alone."""
    cache = ContiguousCache(model.config.text, len(sequences), max(map(len, sequences)))
    for store in (None, cache):
        for got, ids in zip(packed_logits(model, sequences, store), sequences, strict=True):
            assert_same_decoding(got, prefill(model, ids))


def prefill_in_chunks_equals_one_forward(
    model: MiniCPMV, ids: Sequence[int], cuts: Sequence[int], embeddings: Tensor | None = None
) -> None:
    """A prompt run in pieces, cut anywhere, gets the logits and leaves the state of one forward.

    Args:
        embeddings: [T, D] with the features already in their places; a cut may then fall inside a picture.
    """
    x = model.embed(torch.tensor(ids)) if embeddings is None else embeddings
    edges = [0, *sorted(set(cuts)), len(ids)]
    whole, pieces = (ContiguousCache(model.config.text, 2, 4) for _ in range(2))
    for cache in (whole, pieces):
        cache.reserve(len(ids))
    outs = []
    for start, end in pairwise(edges):
        batch = PackedBatch.of([Segment(end - start, start, slot=1)])
        outs.append(model.language_model(x[start:end], batch.positions, batch, pieces))
    batch = PackedBatch.of([Segment(len(ids), slot=1)])
    expected = model.language_model(x, batch.positions, batch, whole)
    assert_same_decoding(model.logits(torch.cat(outs)), model.logits(expected))
    same_cache(pieces, whole, 1)


def same_cache(got: Cache, expected: Cache, slot: int) -> None:
    """Two caches hold the same sequence in `slot`: length, keys and values, conv inputs and recurrent state."""
    length = expected.lengths[slot]
    assert got.lengths[slot] == length
    for layer in expected.keys:
        for name in ("keys", "values"):
            one, other = (getattr(cache, name)[layer][slot, :, :length] for cache in (got, expected))
            assert_same_decoding(torch.as_tensor(one), torch.as_tensor(other))
    for layer in expected.conv:
        for name in ("conv", "recurrent"):
            one, other = (getattr(cache, name)[layer][slot] for cache in (got, expected))
            assert_same_decoding(torch.as_tensor(one), torch.as_tensor(other))


def cached_decode_equals_full_forward(
    model: MiniCPMV, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> None:
    """Prompts packed into a cache, then one token a step for all of them, get what one forward over everything gets.

    Continuations are of equal length; the prompts need not be.
    """
    cache = ContiguousCache(model.config.text, len(prompts), 1)
    cache.reserve(max(map(len, prompts)))
    steps = [[row[-1] for row in packed_logits(model, prompts, cache)]]
    for tokens in zip(*continuations, strict=True):
        cache.reserve(max(cache.lengths) + 1)
        batch = PackedBatch.of([Segment(1, cache.lengths[slot], slot) for slot in range(len(prompts))])
        steps.append(list(model.logits(model(torch.tensor(tokens), batch, None, cache))))
    for b, (prompt, more) in enumerate(zip(prompts, continuations, strict=True)):
        full = prefill(model, [*prompt, *more])
        assert_same_decoding(torch.stack([step[b] for step in steps]), full[len(prompt) - 1 :])


def batch_of_one_equals_inside_a_batch(model: MiniCPMV, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """A sequence gets the same greedy tokens alone as beside others, up to a tie, and logits that differ by rounding
    only."""
    together = _greedy(model, prompts, tokens)
    for b, prompt in enumerate(prompts):
        alone = _greedy(model, [prompt], tokens)
        differs = (i for i, (one, other) in enumerate(zip(together[0][b], alone[0][0], strict=True)) if one != other)
        same = next(differs, tokens)
        assert_same_decoding(together[1][b][: same + 1], alone[1][0][: same + 1])
        assert same == tokens or is_tie(alone[1][0][same]), f"token {same} differs and is no tie"


def _greedy(model: MiniCPMV, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[list[int]], list[Tensor]]:
    cache = ContiguousCache(model.config.text, len(prompts), max(map(len, prompts)) + tokens)
    logits = torch.stack([row[-1] for row in packed_logits(model, prompts, cache)])
    ids, history = [], []
    for _ in range(tokens):
        ids.append(logits.argmax(-1))
        history.append(logits)
        batch = PackedBatch.of([Segment(1, cache.lengths[slot], slot) for slot in range(len(prompts))])
        logits = model.logits(model(ids[-1], batch, None, cache))
    return torch.stack(ids, 1).tolist(), list(torch.stack(history, 1))


def views_together_equal_separate(model: MiniCPMV, patches: Tensor, views: Sequence[View]) -> None:
    """Views of any shapes and rates encoded at once, 16x beside 4x, get what each gets alone."""
    together = model.encode_views(patches, views).split([v.visual_tokens for v in views])
    for got, own, one in zip(together, patches.split([v.patches for v in views]), views, strict=True):
        assert_close(got, model.encode_views(own, [one]))


def order_of_views_is_irrelevant(model: MiniCPMV, patches: Tensor, views: Sequence[View], order: Sequence[int]) -> None:
    """Views handed over in another order give the same features in that order."""
    parts = patches.split([v.patches for v in views])
    expected = model.encode_views(patches, views).split([v.visual_tokens for v in views])
    got = model.encode_views(torch.cat([parts[i] for i in order]), [views[i] for i in order])
    assert_close(got, torch.cat([expected[i] for i in order]))
