"""What a prompt looks like: views where their placeholders are, cuts at a distance, and all of it found out once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.engine_runs import LAYOUTS, drive, limit_cache, make_request, torch_runner
from helpers.tiny_models import CONFIG, prompt_with_views, random_text, tiny_model, view_lists
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.prompt_layout import PromptLayout
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.views import View

PAD = CONFIG.image_token_id


@given(views=view_lists(), span=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_views_in_a_span_are_those_with_a_placeholder_in_it(views: list[View], span: tuple[int, int]) -> None:
    ids = prompt_with_views(views)
    layout = PromptLayout.of(np.array(ids), views, [b"key"] * len(views), placeholder_ids=(PAD,))
    owners: list[int | None] = [None] * len(ids)
    for i, (start, end) in enumerate(zip(layout.starts, layout.ends, strict=True)):
        assert ids[start:end] == [PAD] * views[i].visual_tokens
        owners[start:end] = [i] * (end - start)
    assert ids.count(PAD) == sum(owner is not None for owner in owners)
    start, end = min(span), max(span)
    assert layout.views_in(start, end) == sorted({owner for owner in owners[start:end] if owner is not None})


@given(
    points=st.lists(st.integers(1, 220), max_size=30, unique=True).map(sorted),
    min_cut=st.integers(1, 50),
    max_cuts=st.integers(1, 10),
)
def test_cuts_keep_their_distance_and_the_longest_prefix_is_always_kept(
    points: list[int], min_cut: int, max_cuts: int
) -> None:
    ids = np.array(random_text(200))
    layout = PromptLayout.of(ids, branch_points=points, min_cut=min_cut, max_cuts=max_cuts)
    inside = [point for point in points if point < len(ids)]  # of a whole prompt the last token must be computed
    assert len(layout.digests) == len(set(layout.digests)) == len(inside)
    assert dict(zip(inside, layout.digests, strict=True)).items() >= layout.cuts.items()
    cuts = list(layout.cuts)
    assert cuts[-1:] == inside[-1:]
    assert all(b - a >= max(min_cut, 200 // max_cuts) for a, b in zip([0, *cuts], cuts[:-1], strict=False))
    assert len(cuts) <= max_cuts + 1
    for start, end in ((0, 200), (50, 100)):
        assert layout.next_cut(start, end) == min([cut for cut in cuts if start < cut < end], default=end)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_is_looked_at_once_however_often_its_request_is_pre_empted(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = list[int](), PromptLayout.of

    def counted(*args: Any, **more: Any) -> PromptLayout:
        calls.append(1)
        return real(*args, **more)

    monkeypatch.setattr(PromptLayout, "of", counted)
    runner, params = torch_runner(tiny_model(0), layout), SamplingParams(temperature=0, max_tokens=16)
    engine = Engine(runner, EngineConfig(max_num_seqs=8, prefix_cache_memory=0))
    limit_cache(engine, 4 * 40)
    for seed in range(12):
        engine.add(make_request(runner, random_text(10 + seed, seed), params))
    drive(engine)
    assert engine.metrics.value("num_preemptions_total") > 0
    assert len(calls) == 12
