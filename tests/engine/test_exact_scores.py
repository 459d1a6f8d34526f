"""The best tokens are found whatever the groups, and only their scores change."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketvlm.engine.runners.exact_scores import CANDIDATES, GROUP, candidates, rescore_best


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@given(st.integers(1, 3), st.integers(1, 3 * GROUP * 8), st.integers(1, 8), st.integers(0, 99))
def test_candidates_are_those_of_a_whole_sort(rows: int, vocabulary: int, count: int, seed: int) -> None:
    scores = normal(seed, rows, vocabulary)
    expected = np.argsort(-scores, 1)[:, :count]
    assert np.sort(candidates(scores, count), 1).tolist() == np.sort(expected, 1).tolist()


def test_the_best_get_exact_scores_and_the_others_keep_theirs() -> None:
    table, hidden = normal(0, GROUP * CANDIDATES * 2 + 5, 16), normal(1, 2, 16)
    exact = hidden @ table.T
    rough = exact + np.float32(0.3) * normal(2, *exact.shape)
    scores = rough.copy()
    rescore_best(scores, hidden, lambda ids: table[ids])
    best = candidates(rough)
    assert np.allclose(np.take_along_axis(scores, best, 1), np.take_along_axis(exact, best, 1), atol=1e-5)
    others = np.ones_like(rough, np.bool_)
    np.put_along_axis(others, best, False, 1)
    assert np.array_equal(scores[others], rough[others])
    assert scores.argmax(1).tolist() == exact.argmax(1).tolist()


def test_no_rows_no_work() -> None:
    empty = np.empty((0, 9), np.float32)
    rescore_best(empty, np.empty((0, 4), np.float32), lambda ids: np.zeros((*ids.shape, 4), np.float32))
