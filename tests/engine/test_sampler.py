"""The sampler: each step against a naive twin, rows without effect on each other, fast paths against plain."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine.sampling import draw as draws
from pocketvlm.engine.sampling.device_sampler import DeviceSampler, draw_batch, with_logprobs
from pocketvlm.engine.sampling.draw import draw, weights_buffer
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.engine.sampling.sampler import Sampled, Sampler, SamplingState

V = 50
WIDE = 5000  # enough for groups and for more than one partial sort
SEEDS = st.integers(0, 2**31)
PROMPT = (0, 3, 3, 7)


def scores(seed: int, rows: int = 1, vocab_size: int = V, ties: bool = False, spread: float = 3.0) -> torch.Tensor:
    """Random logits [rows, vocab_size]; of few different values if there should be ties."""
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    return logits.round() if ties else logits


def state_of(
    params: SamplingParams, prompt: Sequence[int] = PROMPT, stop: Sequence[int] = (), index: int = 0
) -> SamplingState:
    return SamplingState(params, np.array(prompt), frozenset(stop), index)


def run(params: SamplingParams, logits: torch.Tensor, steps: int = 1, **options: object) -> list[int]:
    """Tokens of one sequence that sees the same logits [V] at each step."""
    sampler, state = Sampler(len(logits)), state_of(params, **options)  # type: ignore[arg-type]
    for _ in range(steps):
        state.append(sampler(logits.numpy()[None], [state])[0].token)
    return state.output_ids


def naive_kept(logits: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Weights of the tokens that temperature, top-k, top-p and min-p leave, by plain loops."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weight = {t: math.exp((logits[t] - logits[order[0]]) / params.temperature) for t in order}
    if 0 < params.top_k < len(order):
        last = logits[order[params.top_k - 1]]
        order = [t for t in order if logits[t] >= last]
    if params.top_p < 1:
        total, before, kept = sum(weight[t] for t in order), 0.0, []
        for t in order:
            if before < params.top_p * total:
                kept.append(t)
            before += weight[t]
        order = kept
    return {t: weight[t] for t in order if weight[t] >= params.min_p}


def naive_draw(logits: Sequence[float], params: SamplingParams, uniform: float) -> int:
    kept, running = naive_kept(logits, params), 0.0
    wanted = uniform * sum(kept.values())
    for token in sorted(kept):
        running += kept[token]
        if running > wanted:
            return token
    return max(kept)


def naive_change(logits: torch.Tensor, state: SamplingState, prompt: Sequence[int]) -> list[float]:
    """What bias, min_tokens and penalties make of logits [V]."""
    changed, params, answer = logits.tolist(), state.params, Counter(state.output_ids)
    for token in range(len(changed)):
        changed[token] += dict(params.logit_bias or ()).get(token, 0.0)
        if token in state.stop_ids and len(state.output_ids) < params.min_tokens:
            changed[token] = -math.inf
        if token in prompt or token in answer:
            factor = params.repetition_penalty
            changed[token] *= 1 / factor if changed[token] > 0 else factor
        changed[token] -= params.frequency_penalty * answer[token]
        changed[token] -= params.presence_penalty * (token in answer)
    return changed


FILTERS = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 5),
    top_k=st.one_of(st.just(0), st.integers(1, 2 * V)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    seed=SEEDS,
)


@given(SEEDS, FILTERS, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_that_of_plain_loops(seed: int, params: SamplingParams, uniform: float) -> None:
    (logits,) = scores(seed)
    expected = naive_draw(logits.tolist(), params, uniform)
    assert draw(logits.numpy(), params, uniform, weights_buffer(V)) == expected
    assert draw_batch(logits[None], [params], [uniform]).tolist() == [expected]


@given(SEEDS, FILTERS)
def test_what_is_kept_of_equal_scores_is_that_of_plain_loops(seed: int, params: SamplingParams) -> None:
    (logits,) = scores(seed, ties=True)
    params = SamplingParams(temperature=1.0, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
    wanted = set(naive_kept(logits.tolist(), params))
    ladder = [(i + 0.5) / 200 for i in range(200)]
    kept = {draw(logits.numpy(), params, u, weights_buffer(V)) for u in ladder}
    assert kept <= wanted
    assert set(draw_batch(logits.expand(len(ladder), -1), [params] * len(ladder), ladder).tolist()) == kept
    weights = naive_kept(logits.tolist(), params)
    assert {t for t, w in weights.items() if w > sum(weights.values()) / 100} <= kept


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 3000},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"top_p": 0.9, "temperature": 30.0},
        {"top_k": 600, "top_p": 0.9, "temperature": 5.0},
        {"min_p": 0.1},
        {"top_k": 30, "min_p": 0.05, "top_p": 0.99},
    ],
)
def test_partial_sorts_give_what_a_full_sort_gives(options: dict[str, float], ties: bool) -> None:
    rows, params = 64, SamplingParams(**{"temperature": 1.0, **options})  # type: ignore[arg-type]
    logits = scores(1, rows, WIDE, ties)
    uniform = [(i + 0.37) / rows for i in range(rows)]
    full = draw_batch(logits, [params] * rows, uniform, width=WIDE).tolist()
    assert draw_batch(logits, [params] * rows, uniform, width=16).tolist() == full
    buffer = weights_buffer(WIDE)
    assert [draw(row, params, u, buffer) for row, u in zip(logits.numpy(), uniform, strict=True)] == full


def test_top_p_looks_at_few_tokens_unless_it_needs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    (logits,) = scores(2, 1, WIDE)
    sizes = list[int]()
    reaching = draws._reaching

    def counting(wanted: float, among: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        sizes.append(len(among))
        return reaching(wanted, among, *rest)

    monkeypatch.setattr(draws, "_reaching", counting)
    for temperature in (1.0, 30.0):
        draw(logits.numpy(), SamplingParams(temperature=temperature, top_p=0.9), 0.5, weights_buffer(WIDE))
    assert sizes[0] == draws.LIKELY < draws.STEPS < sizes[1]


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0] + [-30.0] * (V - 3))
    tokens = torch.tensor(run(SamplingParams(temperature=1.0, seed=1), logits, 4000))
    shares = torch.bincount(tokens, minlength=3)[:3] / 4000
    assert torch.allclose(shares, logits[:3].softmax(-1), atol=0.03)


def test_top_p_stops_where_the_sum_is_reached_exactly() -> None:
    for size in (V, WIDE):
        logits = torch.zeros(size)
        params = SamplingParams(top_p=0.5)
        last = size // 2 - 1  # of equal scores, the lower ids
        assert draw(logits.numpy(), params, 1 - 2**-53, weights_buffer(size)) == last
        assert draw_batch(logits[None], [params], [1 - 2**-53]).tolist() == [last]
    graded = np.repeat(np.array([0, -1, -2], np.float32), draws.STEPS)  # the sum is reached where a step of scores ends
    kept = draws._reaching(draws.STEPS * 1.5, np.arange(len(graded)), graded, np.exp2(graded))
    assert kept.tolist() == list(range(2 * draws.STEPS))


def test_temperature_zero_and_almost_zero_are_the_best_token() -> None:
    (logits,) = scores(0)
    for temperature in (0, 5e-324, 1e-38):
        assert run(SamplingParams(temperature=temperature), logits, 5) == [int(logits.argmax())] * 5


def test_a_seed_gives_the_same_tokens_and_each_index_others() -> None:
    logits = torch.zeros(V)
    seeded = [run(SamplingParams(seed=seed), logits, 30) for seed in (5, 5, 6, -1)]
    assert seeded[0] == seeded[1]
    other = run(SamplingParams(seed=5), logits, 30, index=1)
    without = [run(SamplingParams(), logits, 30) for _ in range(2)]
    assert len({tuple(tokens) for tokens in [*seeded, other, *without]}) == 6


def test_random_numbers_depend_on_the_step_only_and_are_uniform() -> None:
    state, again = (state_of(SamplingParams(seed=3)) for _ in range(2))
    numbers = []
    for _ in range(2000):
        numbers.append(state.uniform())
        assert state.uniform() == numbers[-1]
        state.append(1)
    for token in range(500):
        again.append(token % V)
    assert again.uniform() == numbers[500]
    assert all(0 <= u < 1 for u in numbers)
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 200).max() < 70


MIXED = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5, 400]),
    top_p=st.sampled_from([0.3, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([-0.5, 0.0]),
    logit_bias=st.sampled_from([None, {4: 3.0, 9: -100.0}]),
    min_tokens=st.sampled_from([0, 2]),
    logprobs=st.sampled_from([None, 0, 3]),
    seed=SEEDS,
)


def random_mask(seed: int, vocab_size: int) -> np.ndarray:
    words = np.random.default_rng(seed).integers(-(2**31), 2**31, -(-vocab_size // 32))
    return words.astype(np.int32)


@settings(max_examples=8)
@given(SEEDS, st.lists(MIXED, min_size=64, max_size=64), st.sampled_from([None, torch.float32, torch.bfloat16]))
def test_a_row_in_a_batch_is_the_row_alone(seed: int, params: list[SamplingParams], dtype: torch.dtype | None) -> None:
    """On the CPU, and as tensors."""
    size = 2100  # more than four blocks
    logits = scores(seed, len(params), size)
    logits = logits.numpy() if dtype is None else logits.to(dtype)
    masks = np.full((len(params), -(-size // 32)), -1, np.int32)
    masks[::3] = random_mask(seed, size)
    together, alone = ([state_of(p, stop=(1, 2)) for p in params] for _ in range(2))
    sampler, before = Sampler(size), logits.copy() if dtype is None else logits.clone()
    for _ in range(3):
        batch = sampler(logits, together, masks)
        for b, sampled in enumerate(batch):
            assert sampler(logits[b : b + 1], alone[b : b + 1], masks[b : b + 1]) == [sampled]
            together[b].append(sampled.token)
            alone[b].append(sampled.token)
    assert (logits == before).all()


@given(SEEDS, MIXED)
def test_bias_and_penalties_are_those_of_plain_loops(seed: int, params: SamplingParams) -> None:
    (logits,) = scores(seed)
    sampler, state = Sampler(V), state_of(params, stop=(1, 2, 10**6))
    for step in range(6):
        changed = naive_change(logits, state, PROMPT)
        (sampled,) = sampler(logits.numpy()[None], [state])
        if params.temperature > 0:
            assert sampled.token == naive_draw(changed, params, state.uniform())
        else:
            assert changed[sampled.token] == pytest.approx(max(changed), abs=1e-5)
        state.append((seed + step) % V if step % 2 else sampled.token)


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.zeros(V)
    logits[3], logits[4], logits[5] = 2.0, 1.9, 1.8
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert run(params, logits, 3, prompt=(3,)) == [4, 5, 3]


def test_repetition_penalty_makes_negative_scores_worse_too() -> None:
    logits = torch.full((V,), -9.0)
    logits[3], logits[4] = -1.0, -1.2
    assert run(SamplingParams(temperature=0), logits, prompt=(3,)) == [3]
    assert run(SamplingParams(temperature=0, repetition_penalty=1.5), logits, 2, prompt=(3,)) == [4, 3]


def test_frequency_and_presence_penalty_count_the_answer_only() -> None:
    logits = torch.zeros(V)
    logits[3], logits[4] = 2.0, 1.1
    assert run(SamplingParams(temperature=0, presence_penalty=1.0), logits, 4, prompt=(3,)) == [3, 4, 3, 3]
    assert run(SamplingParams(temperature=0, frequency_penalty=1.0), logits, 4, prompt=(3,)) == [3, 4, 3, 4]


def test_counts_grow_with_a_long_answer() -> None:
    state = state_of(SamplingParams(repetition_penalty=1.1))
    tokens = [i * i % 997 for i in range(3000)]
    for token in tokens:
        state.append(token)
    assert state.counts is not None
    counted = dict(zip(state.counts.ids.tolist(), state.counts.counts.tolist(), strict=True))
    assert counted == {**dict.fromkeys(PROMPT, 0), **Counter(tokens)}
    assert state_of(SamplingParams()).counts is None


@given(SEEDS, FILTERS, st.booleans())
def test_a_mask_allows_what_its_bits_say(seed: int, params: SamplingParams, greedy: bool) -> None:
    (logits,) = scores(seed)
    allowed = {int(t) for t in np.random.default_rng(seed).choice(V, 4, replace=False)}
    words = [sum(1 << t % 32 for t in allowed if t // 32 == word) for word in range(2)]
    mask = np.array([words], np.uint32).view(np.int32)
    if greedy:
        params = SamplingParams(temperature=0)
    (sampled,) = Sampler(V)(logits.numpy()[None], [state_of(params)], mask)
    masked = [score if t in allowed else -math.inf for t, score in enumerate(logits.tolist())]
    if greedy:
        assert sampled.token == max(allowed, key=lambda t: masked[t])
    else:
        assert sampled.token == naive_draw(masked, params, state_of(params).uniform())


def test_no_answer_ends_before_min_tokens() -> None:
    logits = torch.zeros(V)
    logits[[1, 2]] = 9.0
    logits[6] = 8.0
    options = {"temperature": 0, "min_tokens": 2, "stop_token_ids": (2,)}
    assert run(SamplingParams(**options), logits, 3, stop=(1,)) == [6, 6, 1]  # type: ignore[arg-type]
    regardless = state_of(SamplingParams(ignore_eos=True, **options), stop=(1,))  # type: ignore[arg-type]
    assert regardless.stop_ids == {2}
    assert state_of(SamplingParams(stop_token_ids=(2,)), stop=(1,)).stop_ids == {1, 2}


@given(SEEDS, st.integers(0, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_log_probabilities_are_those_of_the_model(seed: int, count: int, dtype: torch.dtype) -> None:
    logits = scores(seed, 1, WIDE).to(dtype)
    params = SamplingParams(logprobs=count, temperature=3.0, top_k=2, logit_bias={5: 90.0, 9: 90.0}, presence_penalty=1)
    (sampled,) = Sampler(WIDE)(logits.float().numpy(), [state_of(params)])
    expected = logits.double().log_softmax(-1)[0]
    assert sampled.token in (5, 9)
    assert sampled.logprob == pytest.approx(float(expected[sampled.token]), abs=1e-5)
    values = logits[0].tolist()
    top = sorted(range(WIDE), key=lambda t: (-values[t], t))[:count]
    assert [token for token, _ in sampled.top_logprobs] == top
    assert [p for _, p in sampled.top_logprobs] == pytest.approx(expected[top].tolist(), abs=1e-5)
    (elsewhere,) = with_logprobs(logits, [0], [sampled.token], [count])
    assert elsewhere.token == sampled.token
    assert elsewhere.logprob == pytest.approx(sampled.logprob)
    assert [p for _, p in elsewhere.top_logprobs] == pytest.approx([p for _, p in sampled.top_logprobs])
    assert all(p == pytest.approx(float(expected[token]), abs=1e-5) for token, p in elsewhere.top_logprobs)


def test_without_logprobs_there_are_none_and_impossible_tokens_have_none() -> None:
    logits = torch.full((1, V), -torch.inf)
    logits[0, 4] = 1.0
    assert Sampler(V)(logits.numpy(), [state_of(SamplingParams())]) == [Sampled(4)]
    certain = [Sampled(4, 0.0, ((4, 0.0),))]
    assert Sampler(V)(logits.numpy(), [state_of(SamplingParams(logprobs=5))]) == certain
    assert with_logprobs(logits, [0], [4], [5]) == certain


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_broken_row_fails_alone(temperature: float) -> None:
    logits = scores(3, 6)
    params = SamplingParams(temperature=temperature, seed=1, top_p=0.9, logprobs=2)
    good = Sampler(V)(logits.numpy(), [state_of(params) for _ in range(6)])
    masks = np.full((6, 2), -1, np.int32)
    logits[1] = torch.nan
    logits[2, 7] = torch.nan
    logits[3, 7] = torch.inf
    masks[2] = masks[3] = 1  # which hides them
    masks[4] = 0
    for where in (logits.numpy(), logits):
        sampled = Sampler(V)(where, [state_of(params) for _ in range(6)], masks)
        assert sampled[1:5] == [Sampled(-1)] * 4
        assert [one.token for one in (sampled[0], sampled[5])] == [good[0].token, good[5].token]


@given(SEEDS, st.lists(MIXED, min_size=5, max_size=5))
def test_another_device_chooses_as_the_cpu(seed: int, params: list[SamplingParams]) -> None:
    """The path of other devices, run on the CPU; log probabilities are compared elsewhere."""
    size = 2100
    logits = scores(seed, len(params), size)
    logits[3, 5] = torch.nan
    masks = np.full((len(params), -(-size // 32)), -1, np.int32)
    masks[0] = random_mask(seed, size)
    sampler, device = Sampler(size), DeviceSampler(size)
    states = [state_of(p, stop=(1, 2)) for p in params]
    for _ in range(3):
        expected = sampler(logits.numpy(), states, masks)
        assert [s.token for s in device(logits, states, masks)] == [s.token for s in expected]
        for state, sampled in zip(states, expected, strict=True):
            state.append(max(sampled.token, 0))
