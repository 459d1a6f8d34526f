"""Losses and gradients are the same however samples are packed; preferences are those of their paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.invariants import assert_close
from helpers.training import assert_gradients_close, encoded, gradients

from pocketvlm.model.checkpoint import load_model
from pocketvlm.training.batches import Batch, micro_batches
from pocketvlm.training.losses import answer_losses, dpo_losses, sequence_log_probs


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_packed_samples_have_the_losses_and_gradients_of_each_alone(
    seeded_checkpoint: Callable[[int], Path], mode: str
) -> None:
    directory = seeded_checkpoint(1)
    model, examples = load_model(directory).requires_grad_(True), encoded(directory, mode)
    weight = sum(one.learnt for one in examples)
    alone = [Batch.of([one]) for one in examples]
    together = Batch.of(examples)
    assert_close(answer_losses(model, together), torch.cat([answer_losses(model, one) for one in alone]), 1e-5)
    packed, apart = gradients(model, [together], weight), gradients(model, alone, weight)
    assert packed.keys() == apart.keys()
    assert_gradients_close(packed, apart)


def test_rows_know_their_sample_and_sequences_add_up_their_tokens(seeded_checkpoint: Callable[[int], Path]) -> None:
    directory = seeded_checkpoint(1)
    model, examples = load_model(directory), encoded(directory)
    batch = Batch.of(examples)
    counts = torch.bincount(batch.samples, minlength=3).tolist()
    assert counts == [one.learnt for one in examples]
    losses = answer_losses(model, batch)
    expected = [-answer_losses(model, Batch.of([one])).sum() for one in examples]
    assert_close(sequence_log_probs(losses, batch), torch.stack(expected), 1e-5)


def test_batches_hold_what_fits_and_never_cut_a_pair(seeded_checkpoint: Callable[[int], Path]) -> None:
    a, b, c = encoded(seeded_checkpoint(1))
    sizes = [len(one.input_ids) for one in (a, b, c)]
    assert [len(x.lengths) for x in micro_batches([(a,), (b,), (c,)], sum(sizes), 10**6)] == [3]
    assert [len(x.lengths) for x in micro_batches([(a,), (b,), (c,)], sum(sizes) - 1, 10**6)] == [2, 1]
    assert [len(x.lengths) for x in micro_batches([(a,), (b,), (c,)], 1, 10**6)] == [1, 1, 1]
    assert [len(x.lengths) for x in micro_batches([(a,), (b,), (c,)], 10**6, 1)] == [1, 1, 1]
    assert [len(x.lengths) for x in micro_batches([(a, b), (b, c)], 1, 1)] == [2, 2]


def test_preferences_have_the_losses_of_their_paper() -> None:
    chosen, rejected, before = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -4.0]), torch.tensor([0.5, -0.25])
    found = dpo_losses(chosen, rejected, before, beta=0.3)
    expected = [-torch.log(torch.sigmoid(torch.tensor(0.3 * x))) for x in (-1.0 - 0.5, 3.0 + 0.25)]
    assert_close(found, torch.stack(expected), 1e-6)
