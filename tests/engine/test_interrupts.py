"""An interrupt, wherever in the engine's own code it comes, costs what was running and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from helpers.engine_runs import LAYOUTS, make_request, torch_runner
from helpers.interrupts import Lines
from helpers.tiny_models import prompt_with_views, random_patches, random_text, tiny_model, view

from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams

ROOMS = ("engine", "model/cache")


def requests(runner: TorchRunner) -> list[Request]:
    """One of each kind: pictures, several answers, beams, drafts, and more than there are slots for."""
    views = [view(8, 8)]

    def text(seed: int, **options: Any) -> Request:
        return make_request(runner, random_text(20, seed), SamplingParams(temperature=0, max_tokens=5, **options))

    picture = make_request(
        runner,
        prompt_with_views(views, seed=1),
        SamplingParams(temperature=0, max_tokens=5),
        frozenset(),
        random_patches(views, 1),
        views,
    )
    return [picture, text(2, n=2), text(3, num_beams=2), text(4), text(5)]


def engine_of(layout: str) -> Engine:
    config = EngineConfig(max_num_seqs=4, prefix_cache_memory=2_000_000)
    return Engine(torch_runner(tiny_model(0), layout), config)


def answer_all(engine: Engine, asked: list[Request], lines: Lines) -> dict[Request, Counter[str]]:
    """How often each answer of each request was said to have ended, by reason; steps go on after interrupts."""
    ended: dict[Request, Counter[str]] = {request: Counter() for request in asked}
    for request in asked:
        engine.add(request)
    for _ in range(200):
        if not engine.has_work:
            break
        try:
            with lines.watched():
                engine.run_step()
        except KeyboardInterrupt:
            continue
        while engine.outputs:
            output = engine.outputs.popleft()
            if output.finish_reason is not None:
                ended[output.request][f"{output.index} {output.error or output.finish_reason}"] += 1
        engine.check_integrity()
    return ended


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupt_at_any_line_costs_what_was_running(layout: str) -> None:
    runner = torch_runner(tiny_model(0), layout)
    lines = Lines(*ROOMS)
    answer_all(engine_of(layout), requests(runner), lines)
    assert lines.count > 2000
    for at in range(1, lines.count, 211):
        engine, asked = engine_of(layout), requests(runner)
        ended = answer_all(
            engine, asked, Lines(*ROOMS, at=(at, at + 40, at + 80))
        )  # the later ones come while it recovers
        where = f"line {at} of {lines.count}: {ended}"
        assert not engine.has_work, where
        for request in asked:
            told = Counter(int(key.split()[0]) for key in ended[request].elements())
            failed = any("interrupted" in key for key in ended[request])
            assert set(told.values()) == {1}, where
            assert failed or set(told) == set(range(request.params.n)), where
            assert all(s.finish_reason is not None and s.slot is None for s in request.sequences), where
        assert not engine.pool.sequences, where
        assert not engine.features.pins, where


def test_a_step_looks_at_what_it_touches_and_not_at_all_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("contiguous")
    for seed in range(40):
        engine.add(make_request(engine.runner, random_text(5, seed), SamplingParams(temperature=0, max_tokens=2)))
    touched = list[Request]()
    remember = engine._remember
    monkeypatch.setattr(engine, "_remember", lambda request: (touched.append(request), remember(request)))
    engine.scheduler.on_admission = engine._remember
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
    assert len(touched) <= 2 * 4 * steps  # those that have a slot, and those that get one
    assert steps < 40
