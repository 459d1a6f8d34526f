"""The generator: whatever shares a batch or a chunk, each request's tokens are those it would get alone.

With beams too, whose pictures are encoded and whose prompts are read once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import prefill
from tiny_models import tiny_model, with_text

from pocketvlm.config import DOWNSAMPLE_MODES
from pocketvlm.engine.generator import Generator, Request, TokenEvent
from pocketvlm.engine.sampling_params import SamplingParams
from pocketvlm.engine.torch_runner import TorchRunner
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import Size, View


@pytest.fixture(scope="module")
def model() -> MiniCPMV:
    return tiny_model(0)


def request(model: MiniCPMV, seed: int, length: int, tokens: int = 6, picture: str | None = None) -> Request:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (length,), generator=g)
    patches, views = None, []
    if picture is not None:
        view = View(Size(height=4, width=8), next(m for m in DOWNSAMPLE_MODES if m == picture))
        views = [view]
        patches = torch.randint(0, 256, (32, 14, 14, 3), generator=g, dtype=torch.uint8)
        pads = torch.full((view.visual_tokens,), model.config.image_token_id)
        ids = torch.cat([ids[:2], pads, ids[2:]])
    return Request(ids, SamplingParams(temperature=0, max_tokens=tokens), frozenset(), patches, views)


def with_beams(plain: Request, num_beams: int, **options: Any) -> Request:
    plain.params = replace(plain.params, num_beams=num_beams, **options)
    return plain


def run(model: MiniCPMV, requests: list[Request], **options: int) -> list[list[int]]:
    for _ in Generator(TorchRunner(model), **options).stream(requests):
        pass
    return [r.output_ids for r in requests]


@settings(max_examples=20)
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
    model: MiniCPMV, shapes: list[tuple[int, int, int, str | None]], max_batch: int, chunk: int
) -> None:
    solo = [run(model, [request(model, *shape)])[0] for shape in shapes]
    together = run(model, [request(model, *s) for s in shapes], max_batch=max_batch, prefill_chunk=chunk)
    assert together == solo


def test_generation_ends_on_any_stop_id_which_is_not_part_of_the_answer(model: MiniCPMV) -> None:
    free = run(model, [request(model, 1, 20, 8)])[0]
    stopped = request(model, 1, 20, 8)
    stopped.stop_ids = frozenset({free[3], 10**6})
    run(model, [stopped])
    assert stopped.output_ids == free[: free.index(free[3])]
    assert stopped.finish_reason == "stop"


def test_max_tokens_ends_with_length_and_timing_is_complete(model: MiniCPMV) -> None:
    r = request(model, 2, 10, 3, "4x")
    run(model, [r])
    assert (len(r.output_ids), r.finish_reason) == (3, "length")
    assert set(r.timing) >= {"encode", "prefill", "decode"}


def test_a_request_finished_by_its_reader_frees_its_slot(model: MiniCPMV) -> None:
    requests = [request(model, i, 9, 8) for i in range(3)]
    expected = run(model, [request(model, 2, 9, 8)])[0]
    for event in Generator(TorchRunner(model), max_batch=1).stream(requests):
        if event.request < 2:
            requests[event.request].finish("stop")
    assert [len(r.output_ids) for r in requests] == [1, 1, 8]
    assert requests[2].output_ids == expected


def test_progress_counts_up_to_the_whole_prompt(model: MiniCPMV) -> None:
    seen: list[tuple[int, int]] = []
    requests = [request(model, 0, 50, 1)]
    for _ in Generator(TorchRunner(model), prefill_chunk=16).stream(
        requests, lambda done, total: seen.append((done, total))
    ):
        pass
    assert seen == [(16, 50), (32, 50), (48, 50), (50, 50)]


def test_empty_and_too_long_prompts_are_refused(model: MiniCPMV) -> None:
    empty = Request(torch.empty(0, dtype=torch.long), SamplingParams(), frozenset())
    with pytest.raises(PromptError, match="empty"):
        run(model, [empty])
    context = model.config.text.max_position_embeddings
    endless = Request(torch.zeros(context, dtype=torch.long), SamplingParams(), frozenset())
    with pytest.raises((PromptError, ConfigError), match="context"):
        run(model, [endless])


@settings(max_examples=15)
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
    st.integers(1, 9),
    st.sampled_from([5, 33, 1024]),
)
def test_a_batch_gives_each_request_with_or_without_beams_its_solo_answer(
    model: MiniCPMV,
    shapes: list[tuple[tuple[int, int, int, str | None], int, float]],
    max_batch: int,
    chunk: int,
) -> None:
    def requests() -> list[Request]:
        return [with_beams(request(model, *shape), beams, repetition_penalty=p) for shape, beams, p in shapes]

    solo = [run(model, [one])[0] for one in requests()]
    assert run(model, requests(), max_batch=max_batch, prefill_chunk=chunk) == solo


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("picture", ["16x", "4x"])
def test_the_score_of_beams_is_that_of_their_answer_read_in_one_forward(
    model: MiniCPMV, seed: int, picture: str
) -> None:
    """Whatever was copied between slots on the way, states and keys were those of the answer."""
    stops = frozenset(range(0, 250, 10))
    one = with_beams(request(model, seed, 20, 12, picture), 4, length_penalty=0.5)
    one.stop_ids = stops
    for event in Generator(TorchRunner(model)).stream([one]):
        assert event == TokenEvent(0, tuple(one.output_ids), one.finish_reason)
    ids = [*one.input_ids.tolist(), *one.output_ids]
    assert one.patches is not None
    assert one.score is not None
    features = model.encode_views(one.patches, one.views)
    log_probs = prefill(model, ids, features)[len(one.input_ids) - 1 :].log_softmax(-1)
    chosen = log_probs[range(len(one.output_ids)), one.output_ids].sum()
    if one.finish_reason == "stop":
        ends = [(float(chosen + log_probs[-1, stop])) / (len(one.output_ids) + 1) ** 0.5 for stop in stops]
        assert min(abs(end - one.score) for end in ends) < 1e-4
    else:
        assert len(one.output_ids) == 12
        assert float(chosen) / 12**0.5 == pytest.approx(one.score, abs=1e-4)


def test_trap_beams_encoding_the_picture_again_towers_and_prompts_are_read_once(model: MiniCPMV) -> None:
    one = with_beams(request(model, 3, 30, 6, "4x"), 3)
    calls, tokens = list[str](), list[int]()
    hooks = [
        model.vision_tower.register_forward_hook(lambda *_: calls.append("tower")),
        model.language_model.register_forward_hook(lambda _module, args, _out: tokens.append(len(args[0]))),
    ]
    try:
        run(model, [one], prefill_chunk=10**6)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == ["tower"]
    assert tokens == [len(one.input_ids), 3, 3, 3, 3, 3]


def test_one_beam_is_a_request_without_beams(model: MiniCPMV) -> None:
    for seed in range(3):
        greedy, one = request(model, seed, 15), with_beams(request(model, seed, 15), 1)
        assert run(model, [greedy]) == run(model, [one])
        assert one.score is None


def test_a_request_with_beams_that_its_reader_gave_up_frees_all_its_slots(model: MiniCPMV) -> None:
    given_up, steady, waiting = request(model, 0, 9, 8), request(model, 1, 9, 8), request(model, 2, 9, 8)
    requests = [with_beams(given_up, 3), steady, with_beams(waiting, 3)]
    expected = run(model, [request(model, 1, 9, 8), with_beams(request(model, 2, 9, 8), 3)])
    events = []
    for event in Generator(TorchRunner(model), max_batch=4).stream(requests):
        events.append(event.request)
        if len(steady.output_ids) == 3:
            given_up.finish("stop")
    assert given_up.output_ids == []
    assert events == [1] * 8 + [2]
    assert [steady.output_ids, waiting.output_ids] == expected


def test_more_beams_than_the_batch_holds_still_run(model: MiniCPMV) -> None:
    wide = with_beams(request(model, 5, 9, 4), 5)
    assert run(model, [wide, request(model, 6, 9, 4)], max_batch=2) == [
        *run(model, [with_beams(request(model, 5, 9, 4), 5)]),
        *run(model, [request(model, 6, 9, 4)]),
    ]


def test_beams_end_at_the_context() -> None:
    small = tiny_model(0, with_text(max_position_embeddings=24))
    one = with_beams(request(small, 0, 20, 50), 3)
    assert len(run(small, [one])[0]) == 4
    assert one.finish_reason == "length"
