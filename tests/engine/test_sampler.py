"""The sampler: greedy, seeded, and each filter does what its name says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.engine.sampler import Sampler
from pocketvlm.engine.sampling_params import SamplingParams
from pocketvlm.errors import ConfigError

V = 50


def draw(params: SamplingParams, logits: torch.Tensor, times: int = 1, prompt: tuple[int, ...] = (0,)) -> list[int]:
    sampler = Sampler([params], [torch.tensor(prompt)], V)
    return [sampler(logits[None], [0])[0] for _ in range(times)]


@given(st.integers(0, 2**31), st.floats(0.1, 5), st.integers(1, 8))
def test_same_seed_gives_the_same_tokens_alone_and_in_a_batch(seed: int, temperature: float, others: int) -> None:
    logits = torch.randn(others + 1, V, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(temperature=temperature, seed=seed, top_p=0.9, top_k=20)
    solo = draw(params, logits[0], times=3)
    rest = [SamplingParams(temperature=1.0, seed=seed + i) for i in range(1, others + 1)]
    sampler = Sampler([params, *rest], [torch.tensor([0])] * (others + 1), V)
    rows = list(range(others + 1))
    assert [sampler(logits, rows)[0] for _ in range(3)] == solo


def test_temperature_zero_is_the_best_token() -> None:
    logits = torch.randn(V)
    for temperature in (0, 1e-38):
        assert draw(SamplingParams(temperature=temperature), logits, 5) == [int(logits.argmax())] * 5


@given(st.integers(1, V), st.integers(0, 1000))
def test_top_k_draws_among_the_k_best(k: int, seed: int) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed))
    best = set(logits.topk(k).indices.tolist())
    assert set(draw(SamplingParams(temperature=3.0, top_k=k, seed=seed), logits, 20)) <= best


@given(st.floats(0.01, 1), st.integers(0, 1000))
def test_top_p_draws_from_the_smallest_set_that_reaches_p(p: float, seed: int) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3
    ordered, index = logits.softmax(-1).sort(descending=True)
    size = 1 + sum(bool(c < p) for c in ordered.cumsum(-1)[:-1])
    assert set(draw(SamplingParams(temperature=1.0, top_p=p, seed=seed), logits, 20)) <= set(index[:size].tolist())


@given(st.floats(0, 1), st.integers(0, 1000))
def test_min_p_leaves_out_what_is_much_less_likely_than_the_best(p: float, seed: int) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3
    probabilities = logits.softmax(-1)
    allowed = set((probabilities >= p * probabilities.max() * 0.9999).nonzero().flatten().tolist())
    assert set(draw(SamplingParams(temperature=1.0, min_p=p, seed=seed), logits, 20)) <= allowed


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.zeros(V)
    logits[3], logits[4], logits[5] = 2.0, 1.9, 1.8
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert draw(params, logits, times=3, prompt=(3,)) == [4, 5, 3]


@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 1.3])), min_size=1, max_size=5))
def test_rows_with_other_penalties_are_chosen_as_alone(rows: list[tuple[int, float]]) -> None:
    logits = torch.stack([torch.randn(V, generator=torch.Generator().manual_seed(seed)) for seed, _ in rows])
    params = [SamplingParams(temperature=0, repetition_penalty=penalty) for _, penalty in rows]
    prompts = [tuple(range(seed % 9 + 1)) for seed, _ in rows]
    together = Sampler(params, [torch.tensor(prompt) for prompt in prompts], V)
    order = list(reversed(range(len(rows))))
    chosen = [together(logits[order], order) for _ in range(4)]
    before = logits.clone()
    for column, i in enumerate(order):
        assert [step[column] for step in chosen] == draw(params[i], logits[i], 4, prompts[i])
    assert torch.equal(logits, before)


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0] + [-30.0] * (V - 3))
    tokens = torch.tensor(draw(SamplingParams(temperature=1.0, seed=1), logits, 4000))
    shares = torch.bincount(tokens, minlength=3)[:3] / 4000
    assert torch.allclose(shares, logits[:3].softmax(-1), atol=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"stop": 5},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"repetition_penalty": 0},
        {"seed": "x"},
        {"stop": ("",)},
        {"stop": tuple("abcdefghijklmnopqrstuvwxyz")},
        {"frequency_penalty": 1.0},
        {"num_beams": 0},
        {"num_beams": 65, "temperature": 0},
        {"num_beams": 2.0, "temperature": 0},
        {"num_beams": True},
        {"num_beams": 2},  # at the default temperature of 1
        {"num_beams": 2, "temperature": 0.5},
        {"stop": ("x",), "num_beams": 2, "temperature": 0},
        {"length_penalty": float("nan"), "num_beams": 2, "temperature": 0},
        {"length_penalty": 11, "num_beams": 2, "temperature": 0},
        {"length_penalty": "long", "num_beams": 2, "temperature": 0},
        {"length_penalty": 2.0},  # without beams
        {"early_stopping": True},
        {"early_stopping": "never", "num_beams": 2, "temperature": 0},
        {"early_stopping": 1, "num_beams": 2, "temperature": 0},
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        SamplingParams.from_options(options, {})
    assert "\n" not in str(error.value)
    assert next(iter(options)) in str(error.value)


def test_defaults_of_a_checkpoint_are_greedy_unless_it_samples() -> None:
    assert SamplingParams.defaults_of({"temperature": 0.7}) == {"temperature": 0.0}
    assert SamplingParams.defaults_of({"do_sample": True, "temperature": 0.7, "top_k": 0}) == {
        "temperature": 0.7,
        "top_k": 0,
    }
