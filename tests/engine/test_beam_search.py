"""Beam search alone, on tables of scores: what it finds and when it ends."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine.sampling.beam_search import BeamSearch, Hypothesis
from pocketvlm.engine.sampling.params import SamplingParams

V = 5
STOP = 4
PROMPT = (0, 2)


def table(seed: int, ids: tuple[int, ...]) -> torch.Tensor:
    """Scores [V] of the token after `ids`: random, but always the same."""
    place = sum((token + 1) * (V + 1) ** i for i, token in enumerate(ids))
    return torch.randn(V, generator=torch.Generator().manual_seed(1000 * seed + place)) * 2


def params(num_beams: int = 2, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, num_beams=num_beams, **options)


def search(seed: int, options: SamplingParams, max_tokens: int, stops: tuple[int, ...] = (STOP,)) -> BeamSearch:
    """A search on the table, run to its end."""
    beams = BeamSearch(options, np.array(PROMPT), frozenset(stops), max_tokens, V)
    while not beams.done:
        before = beams.beams
        parents = beams.advance(torch.stack([table(seed, beam.ids) for beam in before]).numpy())
        assert [beam.ids[:-1] for beam in beams.beams] == [before[parent].ids for parent in parents]
    return beams


def score(seed: int, ids: tuple[int, ...], options: SamplingParams) -> float:
    """Penalised score of `ids`, a stop id at the end included, computed token by token."""
    total = 0.0
    for n, token in enumerate(ids):
        log_probability = float(table(seed, ids[:n]).log_softmax(-1)[token])
        total += log_probability * (options.repetition_penalty if token in (*PROMPT, *ids[:n]) else 1)
    return float(total / len(ids) ** options.length_penalty)


def whole_answers(max_tokens: int) -> list[tuple[int, ...]]:
    """Every answer there is, its stop id included."""
    words = [token for token in range(V) if token != STOP]
    ended = [(*ids, STOP) for n in range(max_tokens) for ids in product(words, repeat=n)]
    return ended + list(product(words, repeat=max_tokens))


@settings(max_examples=30)
@given(
    st.integers(0, 10**4), st.integers(1, 3), st.sampled_from([-1.0, 0.0, 1.0, 2.5]), st.sampled_from([0.8, 1.0, 1.5])
)
def test_beams_for_every_prefix_find_the_best_of_all_answers(
    seed: int, max_tokens: int, length_penalty: float, repetition_penalty: float
) -> None:
    options = params(64, length_penalty=length_penalty, repetition_penalty=repetition_penalty)
    best = search(seed, options, max_tokens).best
    scores = {ids: score(seed, ids, options) for ids in whole_answers(max_tokens)}
    ids = (*best.ids, STOP) if best.finish_reason == "stop" else best.ids
    assert best.score == pytest.approx(max(scores.values()), abs=1e-5)
    assert best.score == pytest.approx(scores[ids], abs=1e-5)


@given(
    st.integers(0, 10**4),
    st.integers(2, 5),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([-1.0, 1.0, 2.0]),
    st.sampled_from([0.5, 1.0, 1.2]),
)
def test_a_few_beams_return_an_answer_with_its_own_score(
    seed: int,
    num_beams: int,
    max_tokens: int,
    early_stopping: bool,
    length_penalty: float,
    repetition_penalty: float,
) -> None:
    options = params(
        num_beams,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
    )
    best = search(seed, options, max_tokens).best
    ended = (*best.ids, STOP) if best.finish_reason == "stop" else best.ids
    assert STOP not in best.ids
    assert len(ended) <= max_tokens
    assert (best.finish_reason == "length") <= (len(best.ids) == max_tokens)
    assert best.score == pytest.approx(score(seed, ended, options), abs=1e-5)


@given(st.integers(0, 10**4), st.integers(2, 5), st.sampled_from([1.0, 1.2]))
def test_two_tokens_of_beams_are_never_worse_than_two_greedy_ones(
    seed: int, num_beams: int, repetition_penalty: float
) -> None:
    """Of more tokens that is not so: what greedy decoding begins with may lose its beam before it turns out best."""
    options = params(num_beams, repetition_penalty=repetition_penalty)
    greedy: tuple[int, ...] = ()
    for _ in range(2):
        greedy = max(((*greedy, token) for token in range(V)), key=lambda ids: score(seed, ids, options) * len(ids))
    assert search(seed, options, 2, stops=()).best.score >= score(seed, greedy, options) - 1e-5


@given(st.integers(0, 10**4), st.integers(1, 8))
def test_one_beam_is_greedy_decoding(seed: int, max_tokens: int) -> None:
    ids: tuple[int, ...] = ()
    for _ in range(max_tokens):
        ids = (*ids, int(table(seed, ids).argmax()))
    best = search(seed, params(1), max_tokens, stops=()).best
    assert best == Hypothesis(ids, best.score, "length")


def test_an_end_that_ranks_below_the_beams_is_no_answer() -> None:
    beams = BeamSearch(params(2, early_stopping=True), np.array(PROMPT), frozenset({STOP}), 9, V)
    assert beams.advance(torch.tensor([[0.0, 5.0, 0.0, 4.0, 3.0]])) == [0, 0]  # the end comes third
    assert [beam.ids for beam in beams.beams] == [(1,), (3,)]
    beams.advance(torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0], [0.0, 5.0, 0.0, 0.0, -9.0]]))
    assert not beams.done  # one whole answer, (1,), of the two that end an early search
    assert beams.best.ids == (1,)


@pytest.mark.parametrize("fault", [[torch.nan] * V, [0.0, torch.nan, 0.0, 0.0, 0.0], [0.0, torch.inf, 0.0, 0.0, 0.0]])
def test_scores_that_are_none_of_any_beam_are_noticed_and_change_nothing(fault: list[float]) -> None:
    beams = BeamSearch(params(2), np.array(PROMPT), frozenset({STOP}), 9, V)
    assert beams.advance(torch.tensor([fault])) is None
    assert beams.advance(torch.tensor([[0.0, 5.0, 0.0, 4.0, 3.0]])) == [0, 0]
    before = list(beams.beams)
    assert beams.advance(torch.tensor([[0.0] * V, fault])) is None
    assert (beams.beams, beams.length, beams.done) == (before, 1, False)


@given(st.integers(0, 10**4), st.integers(2, 4), st.integers(1, 8))
def test_early_stopping_ends_no_later_and_finds_nothing_better(seed: int, num_beams: int, max_tokens: int) -> None:
    patient = params(num_beams)
    late = search(seed, patient, max_tokens)
    early = search(seed, replace(patient, early_stopping=True), max_tokens)
    assert early.length <= late.length
    assert early.best.score <= late.best.score


@pytest.mark.parametrize("early_stopping", [True, False])
def test_without_early_stopping_a_running_beam_may_still_beat_whole_answers(early_stopping: bool) -> None:
    beams = BeamSearch(params(2, early_stopping=early_stopping), np.array([0]), frozenset({0, 2}), 9, V)
    first = torch.tensor([[5.0, 5.1, 0.0, 0.1, -1.0]])  # the answer (0,), and (1,) to run on with
    assert beams.advance(first) == [0, 0]
    assert [beam.ids for beam in beams.beams] == [(1,), (3,)]
    second = torch.tensor([[5.0, 4.9, 0.0, 0.0, 0.0], [0.0] * V])  # (1, 0); as good as it, running: (1, 1)
    parents = beams.advance(second)
    assert parents is not None
    assert parents[0] == 0
    assert beams.beams[0].ids == (1, 1)
    assert beams.done == early_stopping
    assert beams.best.ids == (1,)
    assert beams.best.finish_reason == "stop"
