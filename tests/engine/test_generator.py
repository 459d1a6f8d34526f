"""The generator: whatever shares a batch or a chunk, each request's tokens are those it would get alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from pocketvlm.config import DOWNSAMPLE_MODES
from pocketvlm.engine.generator import Generator, Request
from pocketvlm.engine.sampling_params import SamplingParams
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


def run(model: MiniCPMV, requests: list[Request], **options: int) -> list[list[int]]:
    for _ in Generator(model, **options).stream(requests):
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
    for event in Generator(model, max_batch=1).stream(requests):
        if event.request < 2:
            requests[event.request].finish("stop")
    assert [len(r.output_ids) for r in requests] == [1, 1, 8]
    assert requests[2].output_ids == expected


def test_progress_counts_up_to_the_whole_prompt(model: MiniCPMV) -> None:
    seen: list[tuple[int, int]] = []
    requests = [request(model, 0, 50, 1)]
    for _ in Generator(model, prefill_chunk=16).stream(requests, lambda done, total: seen.append((done, total))):
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
