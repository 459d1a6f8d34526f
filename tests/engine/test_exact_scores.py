"""The best tokens are found whatever the groups, and only their scores change."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.engine.runners.exact_scores import CANDIDATES, GROUP, candidates, rescore_best


@given(st.integers(1, 3), st.integers(1, 3 * GROUP * 8), st.integers(1, 8), st.integers(0, 99))
def test_candidates_are_those_of_a_whole_sort(rows: int, vocabulary: int, count: int, seed: int) -> None:
    scores = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    got = candidates(scores, count)
    expected = scores.sort(1, descending=True).indices[:, :count]
    assert got.sort(1).values.tolist() == expected.sort(1).values.tolist()


def test_the_best_get_exact_scores_and_the_others_keep_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(GROUP * CANDIDATES * 2 + 5, 16, generator=generator)
    hidden = torch.randn(2, 16, generator=generator)
    exact = hidden @ table.T
    rough = exact + 0.3 * torch.randn(exact.shape, generator=generator)
    scores = rough.clone()
    rescore_best(scores, hidden, lambda ids: table[ids])
    best = candidates(rough)
    assert torch.allclose(scores.gather(1, best), exact.gather(1, best), atol=1e-5)
    others = torch.ones_like(rough, dtype=torch.bool).scatter_(1, best, False)
    assert torch.equal(scores[others], rough[others])
    assert scores.argmax(1).tolist() == exact.argmax(1).tolist()


def test_no_rows_no_work() -> None:
    rescore_best(torch.empty(0, 9), torch.empty(0, 4), lambda ids: torch.zeros(*ids.shape, 4))
