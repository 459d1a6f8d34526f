"""How the samples of a step are cut into forwards: each once, within the limits, and few of them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.training.batches import bucketed, micro_batches
from pocketvlm.training.examples import Example

SIZES = st.lists(st.tuples(st.integers(2, 40), st.integers(0, 60), st.integers(1, 2)), min_size=1, max_size=30)


def items(sizes: list[tuple[int, int, int]]) -> list[tuple[Example, ...]]:
    """Single examples and pairs, of so many tokens and patches each."""

    def example(name: str, tokens: int, patches: int) -> Example:
        ids = torch.zeros(tokens, dtype=torch.int64)
        return Example(ids, ids, torch.zeros((patches, 2, 2, 3), dtype=torch.uint8), (), name)

    return [tuple(example(f"{i}.{k}", t, p) for k in range(n)) for i, (t, p, n) in enumerate(sizes)]


@given(SIZES, st.integers(16, 100), st.integers(16, 100))
def test_every_sample_is_in_one_batch_pairs_together_and_none_is_over_the_limits(
    sizes: list[tuple[int, int, int]], tokens: int, patches: int
) -> None:
    given_items = items(sizes)
    found = bucketed(given_items, tokens, patches)
    names = [name for batch in found for name in batch.sources]
    assert sorted(names) == sorted(one.source for item in given_items for one in item)
    for batch in found:
        numbers = [name.partition(".")[0] for name in batch.sources]
        is_alone = len(set(numbers)) == 1
        assert is_alone or (len(batch.input_ids) <= tokens and len(batch.patches) <= patches)
        assert torch.bincount(batch.samples).tolist() == batch.lengths  # all tokens are learnt here
    for i in range(len(given_items)):
        if len(given_items[i]) == 2:
            place = names.index(f"{i}.0")
            assert names[place + 1] == f"{i}.1"


def test_long_and_short_samples_fill_batches_together() -> None:
    sizes = [(60, 0, 1), (50, 0, 1), (40, 0, 1), (50, 0, 1)] * 5
    assert len(list(micro_batches(items(sizes), 100, 100))) == 15
    assert len(bucketed(items(sizes), 100, 100)) == 10
