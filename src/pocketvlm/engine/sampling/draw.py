"""Scores and a uniform number in, a token out: temperature, top-k, top-p, min-p, then the inverse of what is left.

`draw` is one row on a CPU, in NumPy: it sorts only what may be kept, and other rows change nothing.
`device_sampler.draw_batch` is many rows on any device, and the plain twin. In both the token is the first, by id, at
which the running sum of the kept probabilities exceeds the uniform number. Of equal scores, top-k keeps all that tie
with its last; for top-p the lower id comes first.
Shapes:  V vocabulary · P vocabulary rounded up to blocks · N some tokens, ascending · K tokens, best first
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pocketvlm.engine.sampling.params import SamplingParams

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

NO_TOKEN = -1
BLOCK = 512  # numbers that are summed before the search looks inside
LIKELY = 256  # top-p first looks whether so many tokens reach its sum
STEPS = 1024  # of scores, when more tokens than that come into question
_COLDEST = 1e-30  # its inverse is a float32
_LOWEST = np.finfo(np.float32).min


def weights_buffer(vocab_size: int) -> Floats:
    """What `draw` works in, float32 [P]."""
    return np.zeros(-(-vocab_size // BLOCK) * BLOCK, np.float32)


def rate(temperature: float) -> float:
    return float(np.float32(1 / max(temperature, _COLDEST)))


def best_first(scores_V: Floats, count: int) -> Ids:
    """The `count` best tokens, best first, the lower id first of equals; fewer where fewer scores are above -inf."""
    tokens_N = _best(scores_V, count)
    best_N: Ids = tokens_N[np.argsort(-scores_V[tokens_N], kind="stable")]
    return best_N[:count]


def _best(scores_V: Floats, count: int) -> Ids:
    """Tokens [N] with scores no lower than the `count`-th best one, without those of -inf."""
    floor, groups = _LOWEST, max(1024, 4 * count)
    if 2 * groups <= len(scores_V):
        # The best of each group: `count` different tokens are at or above the `count`-th of these.
        best = scores_V[: len(scores_V) // groups * groups].reshape(-1, groups).max(0)
        floor = max(floor, np.partition(best, groups - count)[groups - count])
    tokens_N = np.flatnonzero(scores_V >= floor)
    if len(tokens_N) <= count:
        return tokens_N
    scores_N = scores_V[tokens_N]
    best_N: Ids = tokens_N[scores_N >= np.partition(scores_N, len(scores_N) - count)[len(scores_N) - count]]
    return best_N


def draw(scores_V: Floats, params: SamplingParams, uniform: float, weights_P: Floats) -> int:
    """A token drawn by the parameters' temperature (above 0), top_k, top_p and min_p.

    Args:
        uniform: in [0, 1).
        weights_P: `weights_buffer`; its first V numbers are overwritten.

    Returns:
        `NO_TOKEN` when a score is NaN or the best one is infinite.
    """
    best = scores_V.max()
    if not np.isfinite(best):
        return NO_TOKEN
    weights_V = weights_P[: len(scores_V)]
    with np.errstate(over="ignore"):
        np.subtract(scores_V, best, out=weights_V)  # the best stays at 0, however low the temperature
        np.multiply(weights_V, np.float32(rate(params.temperature)), out=weights_V)
        np.exp(weights_V, out=weights_V)
    kept_N = _kept(scores_V, weights_P, params)
    if kept_N is None:
        return _search(weights_P, uniform)
    sums_N = weights_V[kept_N].cumsum(dtype=np.float64)
    return int(kept_N[np.searchsorted(sums_N, uniform * sums_N[-1], side="right")])


def _kept(scores_V: Floats, weights_P: Floats, params: SamplingParams) -> Ids | None:
    """Tokens [N] that top-k, top-p and min-p keep; None for all."""
    kept_N = None
    if 0 < params.top_k < len(scores_V):
        kept_N = _best(scores_V, params.top_k)
    if params.top_p < 1:
        kept_N = _nucleus(scores_V, weights_P, kept_N, params.top_p)
    if params.min_p > 0:
        enough = weights_P[: len(scores_V)] >= np.float32(params.min_p)  # the best token's weight is 1
        kept_N = np.flatnonzero(enough) if kept_N is None else kept_N[enough[kept_N]]
    return kept_N


def _nucleus(scores_V: Floats, weights_P: Floats, among_N: Ids | None, top_p: float) -> Ids:
    """The fewest best tokens of `among_N` (None: of all) whose weights reach `top_p` of its sum."""
    if among_N is not None:
        return _reaching(top_p * weights_P[among_N].sum(dtype=np.float64), among_N, scores_V, weights_P)
    total = _block_sums(weights_P).sum()
    likely_N = _best(scores_V, LIKELY)
    if weights_P[likely_N].sum(dtype=np.float64) < top_p * total:
        # All tokens below this weight together are half of what top_p leaves out, so the sum is reached without them.
        floor = np.float32(total * (1 - top_p) / (2 * len(scores_V)))
        likely_N = np.flatnonzero(weights_P[: len(scores_V)] >= floor)
    return _reaching(top_p * total, likely_N, scores_V, weights_P)


def _reaching(wanted: float, among_N: Ids, scores_V: Floats, weights_P: Floats) -> Ids:
    """The fewest best tokens of `among_N` whose weights add up to `wanted`; all where they do not."""
    sure_N = among_N[:0]
    if len(among_N) > STEPS:
        # Many are first put on coarse steps of their scores, so that only those on the last step need a sort.
        scores_N = scores_V[among_N]
        depth_N = scores_N.max() - scores_N
        step_N = (depth_N * ((STEPS - 1) / max(float(depth_N.max()), _COLDEST))).astype(np.int32)
        sums = np.bincount(step_N, weights_P[among_N]).cumsum()
        last = min(int(np.searchsorted(sums, wanted, side="left")), len(sums) - 1)
        wanted -= sums[last - 1] if last else 0.0
        sure_N, among_N = among_N[step_N < last], among_N[step_N == last]
    best_K = among_N[np.argsort(-scores_V[among_N], kind="stable")]
    before = int(np.searchsorted(weights_P[best_K].cumsum(dtype=np.float64), wanted, side="left"))
    return np.sort(np.concatenate([sure_N, np.sort(best_K[: before + 1])]), kind="stable")  # merges the two


def _block_sums(weights_P: Floats) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = weights_P.reshape(-1, BLOCK).sum(-1, dtype=np.float64)
    return sums


def _search(weights_P: Floats, uniform: float) -> int:
    """The first token at which the running sum exceeds `uniform` of the whole."""
    ends = _block_sums(weights_P).cumsum()
    wanted = uniform * ends[-1]
    block = int(np.searchsorted(ends, wanted, side="right"))
    weights = weights_P[block * BLOCK : (block + 1) * BLOCK]
    inside = weights.cumsum(dtype=np.float64)
    offset = int(np.searchsorted(inside, wanted - (ends[block - 1] if block else 0.0), side="right"))
    if offset == BLOCK:  # the two sums were rounded differently
        offset = int(np.flatnonzero(weights)[-1])
    return block * BLOCK + offset
