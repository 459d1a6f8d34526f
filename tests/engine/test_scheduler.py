"""The scheduler keeps to its budgets, and who gives up a slot is who came last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers.engine_runs import drive, limit_cache, make_request, torch_runner
from helpers.tiny_models import prompt_with_views, random_patches, random_text, tiny_model, view, view_lists
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request, Sequence
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.engine.scheduler import Plan, SchedulerConfig
from pocketvlm.views import View


@pytest.fixture(scope="module")
def runner() -> TorchRunner:
    return torch_runner(tiny_model(0), "contiguous")


def with_pictures(runner: TorchRunner, views: list[View], seed: int) -> Request:
    params = SamplingParams(temperature=0, max_tokens=3)
    return make_request(
        runner, prompt_with_views(views, seed=seed), params, patches=random_patches(views, seed), views=views
    )


def watch(engine: Engine, patch: pytest.MonkeyPatch, look: Callable[[Plan], None]) -> None:
    plan = engine.scheduler.schedule

    def schedule() -> Plan:
        planned = plan()
        look(planned)
        return planned

    patch.setattr(engine.scheduler, "schedule", schedule)


@settings(max_examples=10)
@given(
    pictures=st.lists(view_lists(), min_size=1, max_size=5),
    tokens=st.sampled_from([1, 24, 60]),
    patches=st.sampled_from([1, 100, 300]),
)
@example(pictures=[[view(4, 8)]] * 4, tokens=24, patches=300)
def test_no_step_takes_more_tokens_and_patches_than_its_budgets(
    runner: TorchRunner, pictures: list[list[View]], tokens: int, patches: int
) -> None:
    engine = Engine(runner, EngineConfig())
    engine.scheduler.config = SchedulerConfig(max_num_batched_tokens=tokens, max_patches=patches)
    requests = [with_pictures(runner, views, seed) for seed, views in enumerate(pictures)]

    def look(plan: Plan) -> None:
        assert sum(chunk.length for chunk in plan.chunks) <= tokens
        sizes = [request.views[i].patches for request, i in plan.views]
        assert sum(sizes) <= patches or len(sizes) == 1  # a view that is larger goes alone

    with pytest.MonkeyPatch.context() as patch:
        watch(engine, patch, look)
        for request in requests:
            engine.add(request)
        answers = drive(engine)
    assert len(answers) == len(requests)


def test_a_step_encodes_as_many_views_as_its_budget_holds(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, encoded = Engine(runner, EngineConfig()), list[int]()
    engine.scheduler.config = SchedulerConfig(max_patches=64)
    watch(engine, monkeypatch, lambda plan: encoded.append(len(plan.views)))
    engine.add(with_pictures(runner, [view(4, 8)] * 5, 0))
    drive(engine)
    assert [count for count in encoded if count] == [2, 2, 1]


def test_who_came_last_gives_up_its_slot_first(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gave_up = Engine(runner, EngineConfig(max_num_seqs=4, prefix_cache_memory=0)), list[Request]()
    preempt = engine.scheduler.preempt

    def noted(sequence: Sequence) -> None:
        gave_up.append(sequence.request)
        preempt(sequence)

    monkeypatch.setattr(engine.scheduler, "preempt", noted)
    limit_cache(engine, 80)
    params = SamplingParams(temperature=0, max_tokens=24)
    first, last = (make_request(runner, random_text(30, seed), params) for seed in range(2))
    for request in (first, last):
        engine.add(request)
    drive(engine)
    assert gave_up == [last]
