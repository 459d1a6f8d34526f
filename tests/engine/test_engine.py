"""The engine: whatever shares a batch or a chunk, each request's tokens are those it would get alone.

With beams too, whose pictures are encoded and whose prompts are read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers.engine_runs import LAYOUTS, assert_same_answers, drive, make_request, run, torch_runner
from helpers.invariants import TIE, prefill
from helpers.tiny_models import tiny_model, with_text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketvlm.config import DOWNSAMPLE_MODES
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.views import Size, View


@pytest.fixture(scope="module", params=LAYOUTS)
def runner(request: pytest.FixtureRequest) -> TorchRunner:
    return torch_runner(tiny_model(0), request.param)


def request(runner: TorchRunner, seed: int, length: int, tokens: int = 6, picture: str | None = None) -> Request:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (length,), generator=g)
    patches, views = None, []
    if picture is not None:
        view = View(Size(height=4, width=8), next(m for m in DOWNSAMPLE_MODES if m == picture))
        views = [view]
        patches = torch.randint(0, 256, (32, 14, 14, 3), generator=g, dtype=torch.uint8)
        pads = torch.full((view.visual_tokens,), runner.config.image_token_id)
        ids = torch.cat([ids[:2], pads, ids[2:]])
    return make_request(runner, ids, SamplingParams(temperature=0, max_tokens=tokens), frozenset(), patches, views)


@cache
def alone(
    seed: int, length: int, tokens: int = 6, picture: str | None = None, beams: int = 1, penalty: float = 1.0
) -> tuple[list[int], float | None]:
    """The answer that such a request gets with nothing beside it, whatever the layout, and the score of its beams."""
    runner = torch_runner(tiny_model(0), "contiguous")
    one = with_beams(request(runner, seed, length, tokens, picture), beams, repetition_penalty=penalty)
    return run(runner, [one])[0], one.score


def with_beams(plain: Request, num_beams: int, **options: Any) -> Request:
    plain.params = replace(plain.params, num_beams=num_beams, **options)
    return plain


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(3, 90), st.integers(1, 7), st.sampled_from([None, "16x", "4x"])),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
    st.sampled_from([5, 33, 64, 1024]),
)
def test_a_batch_gives_each_request_its_solo_answer(
    runner: TorchRunner, shapes: list[tuple[int, int, int, str | None]], max_batch: int, chunk: int
) -> None:
    solo = [alone(*shape)[0] for shape in shapes]
    together = run(runner, [request(runner, *s) for s in shapes], max_num_seqs=max_batch, max_num_batched_tokens=chunk)
    assert_same_answers(runner.model, [request(runner, *shape) for shape in shapes], together, solo)


def test_generation_ends_on_any_stop_id_which_is_not_part_of_the_answer(runner: TorchRunner) -> None:
    free = run(runner, [request(runner, 1, 20, 8)])[0]
    stopped = request(runner, 1, 20, 8)
    stopped.stop_ids = frozenset({free[3], 10**6})
    assert run(runner, [stopped]) == [free[: free.index(free[3])]]
    assert stopped.sequences[0].finish_reason == "stop"


def test_max_tokens_ends_with_length_and_timing_is_complete(runner: TorchRunner) -> None:
    r = request(runner, 2, 10, 3, "4x")
    assert len(run(runner, [r])[0]) == 3
    assert r.sequences[0].finish_reason == "length"
    assert all(r.timing[stage] > 0 for stage in ("queue", "encode", "prefill", "decode"))


def test_a_request_finished_by_its_reader_frees_its_row(runner: TorchRunner) -> None:
    requests = [request(runner, i, 9, 8) for i in range(3)]
    expected = run(runner, [request(runner, 2, 9, 8)])[0]
    engine = Engine(runner, EngineConfig(max_num_seqs=1))
    for one in requests:
        engine.add(one)

    def read(output: Output) -> None:
        if output.request is not requests[2]:
            engine.finish(output.request, output.index)

    answers = drive(engine, read)
    assert [len(answers[one][0]) for one in requests] == [1, 1, 8]
    assert_same_answers(runner.model, [request(runner, 2, 9, 8)], answers[requests[2]], [expected])


def test_empty_and_too_long_prompts_are_refused(runner: TorchRunner) -> None:
    empty = make_request(runner, torch.empty(0, dtype=torch.long), SamplingParams())
    with pytest.raises(PromptError, match="empty"):
        run(runner, [empty])
    context = runner.config.text.max_position_embeddings
    endless = make_request(runner, torch.zeros(context, dtype=torch.long), SamplingParams())
    with pytest.raises((PromptError, ConfigError), match="context"):
        run(runner, [endless])


@settings(max_examples=8)
@given(
    st.lists(
        st.tuples(
            st.tuples(st.integers(0, 99), st.integers(3, 60), st.integers(1, 6), st.sampled_from([None, "16x", "4x"])),
            st.integers(1, 4),
            st.sampled_from([1.0, 1.2]),
        ),
        min_size=2,
        max_size=5,
    ),
    st.integers(4, 9),
    st.sampled_from([5, 33, 1024]),
)
def test_a_batch_gives_each_request_with_or_without_beams_its_solo_answer(
    runner: TorchRunner,
    shapes: list[tuple[tuple[int, int, int, str | None], int, float]],
    max_batch: int,
    chunk: int,
) -> None:
    def requests() -> list[Request]:
        return [with_beams(request(runner, *shape), beams, repetition_penalty=p) for shape, beams, p in shapes]

    together, solo = requests(), [alone(*shape, beams, penalty) for shape, beams, penalty in shapes]
    answers = run(runner, together, max_num_seqs=max_batch, max_num_batched_tokens=chunk)
    for asked, one, got, (expected, score) in zip(requests(), together, answers, solo, strict=True):
        if asked.params.num_beams == 1:
            assert_same_answers(runner.model, [asked], [got], [expected])
        else:  # of two beams that are as good, either may be the answer
            assert got == expected or one.score == pytest.approx(score, rel=TIE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("picture", ["16x", "4x"])
def test_the_score_of_beams_is_that_of_their_answer_read_in_one_forward(
    runner: TorchRunner, seed: int, picture: str
) -> None:
    """Whatever was copied between slots on the way, states and keys were those of the answer."""
    stops = frozenset(range(0, 250, 10))
    one = with_beams(request(runner, seed, 20, 12, picture), 4, length_penalty=0.5)
    one.stop_ids = stops
    patches = one.patches
    (answer,) = run(runner, [one])
    ids = [*one.input_ids.tolist(), *answer]
    model = runner.model
    assert patches is not None
    assert one.score is not None
    features = model.encode_views(patches, one.views)
    log_probs = prefill(model, ids, features)[len(one.input_ids) - 1 :].log_softmax(-1)
    chosen = log_probs[range(len(answer)), answer].sum()
    if one.sequences[0].finish_reason == "stop":
        ends = [(float(chosen + log_probs[-1, stop])) / (len(answer) + 1) ** 0.5 for stop in stops]
        assert min(abs(end - one.score) for end in ends) < TIE * abs(one.score)
    else:
        assert len(answer) == 12
        assert float(chosen) / 12**0.5 == pytest.approx(one.score, rel=TIE)


def test_trap_beams_encoding_the_picture_again_towers_and_prompts_are_read_once(
    runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = with_beams(request(runner, 3, 30, 6, "4x"), 3)
    views, tokens, encode, forward = list[int](), list[int](), runner.encode_views, runner.forward

    def counted_encode(patches: Tensor, asked: Sequence[View], *rest: Any) -> Tensor:
        views.append(len(asked))
        return encode(patches, asked, *rest)

    def counted_forward(x_TD: Tensor, *rest: Any) -> Tensor:
        tokens.append(len(x_TD))
        return forward(x_TD, *rest)

    monkeypatch.setattr(runner, "encode_views", counted_encode)
    monkeypatch.setattr(runner, "forward", counted_forward)
    run(runner, [one], max_num_batched_tokens=10**6)
    assert views == [1]
    assert tokens == [len(one.input_ids), 3, 3, 3, 3, 3]


def test_one_beam_is_a_request_without_beams(runner: TorchRunner) -> None:
    for seed in range(3):
        greedy, one = request(runner, seed, 15), with_beams(request(runner, seed, 15), 1)
        assert run(runner, [greedy]) == run(runner, [one])
        assert one.score is None


def test_a_request_with_beams_that_its_reader_gave_up_frees_all_its_slots(runner: TorchRunner) -> None:
    given_up, steady, waiting = request(runner, 0, 9, 8), request(runner, 1, 9, 8), request(runner, 2, 9, 8)
    requests = [with_beams(given_up, 3), steady, with_beams(waiting, 3)]
    expected = run(runner, [request(runner, 1, 9, 8), with_beams(request(runner, 2, 9, 8), 3)])
    engine = Engine(runner, EngineConfig(max_num_seqs=4))
    for one in requests:
        engine.add(one)
    told_of: list[Request] = []

    def read(output: Output) -> None:
        told_of.append(output.request)
        if told_of.count(steady) == 3:
            engine.abort(given_up)

    answers = drive(engine, read)
    assert told_of == [steady] * 8 + [waiting]
    assert_same_answers(runner.model, [request(runner, 1, 9, 8)], answers[steady], expected[:1])
    assert answers[waiting][0] == expected[1]
    assert given_up.is_finished


def test_more_beams_than_the_engine_has_rows_are_refused(runner: TorchRunner) -> None:
    with pytest.raises(ConfigError, match="num_beams=5, the engine runs 2 sequences"):
        run(runner, [with_beams(request(runner, 5, 9, 4), 5)], max_num_seqs=2)


def test_beams_end_at_the_context() -> None:
    small = TorchRunner(tiny_model(0, with_text(max_position_embeddings=24)))
    one = with_beams(request(small, 0, 20, 50), 3)
    assert len(run(small, [one])[0]) == 4
    assert one.sequences[0].finish_reason == "length"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_sequence_may_fill_a_context_that_is_no_whole_number_of_blocks(layout: str) -> None:
    small = torch_runner(tiny_model(0, with_text(max_position_embeddings=50)), layout)
    one = request(small, 0, 40, 50)
    assert len(run(small, [one], max_num_seqs=1)[0]) == 10


def test_a_search_with_beams_counts_the_tokens_of_its_answer(runner: TorchRunner) -> None:
    engine = Engine(runner)
    engine.add(with_beams(request(runner, 0, 12, 6), 3))
    outputs = [output for _ in range(9) for output in engine.step()]
    assert engine.metrics.value("generation_tokens_total") == sum(len(output.tokens) for output in outputs) > 0
    assert engine.metrics.value("admission_rejections_total", reason="queue_full") == 0
    with pytest.raises(KeyError):
        engine.metrics.value("generated_tokens")
