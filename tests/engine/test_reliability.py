"""What goes wrong for one request is its own affair: aborts, bad numbers, faults and small caches.

`POCKETVLM_REQUESTS=10000 pytest tests/engine/test_reliability.py -s` runs the storm at full size; its other tests are
as large here as anywhere.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engine_runs import LAYOUTS, assert_same_answers, drive, limit_cache, make_request, run, torch_runner
from helpers.tiny_models import prompt_with_views, random_patches, random_text, tiny_model, view
from torch import Tensor

from pocketvlm.engine.async_engine import AsyncEngine
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.executor import reason
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.engine.updater import NO_SCORES
from pocketvlm.errors import ConfigError, PromptError, QueueFullError
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.packing import PackedBatch
from pocketvlm.views import View

REQUESTS = int(os.environ.get("POCKETVLM_REQUESTS", "300"))


@pytest.fixture(params=LAYOUTS)
def runner(request: pytest.FixtureRequest) -> TorchRunner:
    return torch_runner(tiny_model(0), request.param)


def text(runner: TorchRunner, seed: int, length: int = 20, tokens: int = 8, **more: Any) -> Request:
    params = SamplingParams(temperature=0, max_tokens=tokens)
    return make_request(runner, random_text(length, seed), params, **more)


def picture(runner: TorchRunner, seed: int, tokens: int = 8, mode: Any = "16x") -> Request:
    views = [view(8, 8, mode)]
    ids = prompt_with_views(views, seed=seed)
    params = SamplingParams(temperature=0, max_tokens=tokens)
    return make_request(runner, ids, params, frozenset(), random_patches(views, seed), views)


@cache
def alone(seed: int, length: int = 20, tokens: int = 8) -> tuple[int, ...]:
    """What a request of text gets that nothing else runs beside, whatever the layout."""
    runner = torch_runner(tiny_model(0), "contiguous")
    return tuple(run(runner, [text(runner, seed, length, tokens)])[0])


def is_empty(engine: Engine) -> bool:
    engine.check_integrity()
    pool = engine.pool
    return not (engine.requests or pool.sequences or engine.scheduler.waiting or engine.features.pins)


async def read(engine: AsyncEngine, request: Request, stop_after: int | None = None) -> list[int]:
    """Its tokens; its reader leaves after some of them."""
    tokens: list[int] = []
    async with aclosing(engine.generate(request)) as outputs:
        if stop_after == 0:
            return tokens
        async for output in outputs:
            assert output.error is None, output.error
            tokens += output.tokens
            if stop_after is not None and len(tokens) >= stop_after:
                break
    return tokens


def test_an_abort_storm_leaves_survivors_alone_and_nothing_behind(runner: TorchRunner) -> None:
    """Half of the readers leave at a random point, some before their first token."""
    chance = random.Random(0)
    engine = Engine(runner, EngineConfig(max_num_seqs=8, prefix_cache_memory=2_000_000))

    async def storm() -> float:
        async with AsyncEngine(engine, max_in_flight=REQUESTS) as asynchronous:

            async def one(i: int) -> None:
                await asyncio.sleep(chance.random() * REQUESTS / 1000)
                leaves = chance.randrange(9) if i % 2 else None
                tokens = await read(asynchronous, text(runner, i % 20), leaves)
                expected = alone(i % 20) if leaves is None else alone(i % 20)[: len(tokens)]
                assert_same_answers(runner.model, [text(runner, i % 20)], [tokens], [expected])

            await asyncio.gather(*(one(i) for i in range(REQUESTS)))
            began = time.monotonic()
            while not is_empty(engine):  # those that left last
                await asyncio.sleep(0.01)
                assert time.monotonic() - began < 1
            return time.monotonic() - began

    freed = asyncio.run(storm())
    metrics = engine.metrics
    ended = sum(metrics.value("request_success_total", finished_reason=r) for r in ("stop", "length", "abort", "error"))
    assert ended == metrics.value("requests_total")
    assert metrics.value("request_success_total", finished_reason="error") == 0
    assert metrics.value("request_success_total", finished_reason="length") >= REQUESTS / 2
    print(f"\n{REQUESTS} requests, all free {freed:.3f} s after the last reader")


def test_a_reader_that_leaves_frees_its_slot_within_two_steps(runner: TorchRunner) -> None:
    engine, steps = Engine(runner), list[int]()
    real = engine.step

    def counted() -> list[Output]:
        steps.append(len(engine.pool.sequences))
        return real()

    engine.step = counted  # type: ignore[method-assign]

    async def leave() -> None:
        async with AsyncEngine(engine) as asynchronous:
            steady = asyncio.create_task(read(asynchronous, text(runner, 1, tokens=10**5)))
            for seed in range(20):
                await read(asynchronous, text(runner, seed, tokens=2000), stop_after=3)
                before = len(steps)
                while not steps[before:] or steps[-1] > 1:
                    await asyncio.sleep(0)
                assert sum(running > 1 for running in steps[before:]) <= 2
            steady.cancel()

    asyncio.run(leave())


def test_64_requests_in_a_cache_for_four_all_finish_as_they_would_alone(runner: TorchRunner) -> None:
    made = [(seed, 10 + seed % 30, 16) for seed in range(64)]
    expected = [alone(*one) for one in made]
    engine = Engine(runner, EngineConfig(max_num_seqs=16, prefix_cache_memory=0))
    limit_cache(engine, 4 * 40)
    requests = [text(runner, *one) for one in made]
    for request in requests:
        engine.add(request)
    answers = drive(engine)
    asked = [text(runner, *one) for one in made]
    assert_same_answers(runner.model, asked, [answers[request][0] for request in requests], expected)
    assert engine.metrics.value("num_preemptions_total") > 0
    assert is_empty(engine)


def test_a_batch_of_32_at_both_rates_equals_each_alone(runner: TorchRunner) -> None:
    made = [(seed, 6, "4x" if seed % 2 else "16x") for seed in range(32)]
    expected = [run(runner, [picture(runner, *one)])[0] for one in made]
    together = run(runner, [picture(runner, *one) for one in made], max_num_seqs=32)
    assert_same_answers(runner.model, [picture(runner, *one) for one in made], together, expected)


def test_answers_are_the_same_in_batches_of_1_to_64(runner: TorchRunner) -> None:
    expected = [alone(seed) for seed in range(64)]
    for size in (2, 7, 16, 33, 64):
        together = run(runner, [text(runner, seed) for seed in range(size)], max_num_seqs=64)
        assert_same_answers(runner.model, [text(runner, seed) for seed in range(size)], together, expected[:size])


class Broken(TorchRunner):
    """A runner with a fault to order."""

    def __init__(self, layout: str) -> None:
        super().__init__(tiny_model(0), graphs=layout == "recorded")
        if layout != "contiguous":
            self.cache_layouts = ("paged", "contiguous")
        self.forwards, self.fails_at = 0, -1
        self.nan_of: Sequence[int] = ()  # first ids of the prompt whose scores are lost
        self.bad_patches: Tensor | None = None
        self.sequences_seen: dict[int, int] = {}

    def forward(self, x_TD: Tensor, batch: PackedBatch, cache: Cache, rows: Tensor) -> Tensor:
        self.forwards += 1
        if self.forwards == self.fails_at:
            raise RuntimeError("a fault of the device, with insides that nobody should see")
        return super().forward(x_TD, batch, cache, rows)

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        x_TD = super().embed(input_ids, features)
        if len(self.nan_of) and input_ids[: len(self.nan_of)].tolist() == list(self.nan_of):
            x_TD = x_TD.clone()
            x_TD[len(self.nan_of) // 2] = float("nan")
        return x_TD

    def encode_views(self, patches: Tensor, views: Sequence[View], adapter: PlacedAdapter | None = None) -> Tensor:
        if self.bad_patches is not None:
            size = len(self.bad_patches)
            for first in range(0, len(patches), size):
                if np.array_equal(patches[first : first + size], self.bad_patches):
                    raise torch.OutOfMemoryError("tried to allocate 3.14 GiB at 0x7f")
        return super().encode_views(patches, views, adapter)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_in_one_slot_fails_that_request_alone_and_leaves_its_slot_clean(layout: str) -> None:
    runner = Broken(layout)
    expected = [run(runner, [text(runner, seed, 10 + seed)])[0] for seed in range(12)]
    engine = Engine(runner, EngineConfig(max_num_seqs=6))
    requests = [text(runner, seed, 10 + seed) for seed in range(12)]
    runner.nan_of = requests[3].input_ids.tolist()
    for request in requests:
        engine.add(request)
    failed: list[Output] = []
    answers = drive(engine, lambda output: failed.append(output) if output.error else None, may_fail=True)
    assert [output.request for output in failed] == [requests[3]]
    assert failed[0].finish_reason == "error"
    fresh = [text(runner, seed, 10 + seed) for seed in range(12)]
    survivors = [seed for seed in range(12) if seed != 3]
    kept = [answers[requests[seed]][0] for seed in survivors]
    runner.nan_of = ()
    assert_same_answers(runner.model, [fresh[s] for s in survivors], kept, [expected[s] for s in survivors])
    assert is_empty(engine)
    again = [text(runner, seed, 10 + seed) for seed in range(12)]
    for request in again:
        engine.add(request)
    answers = drive(engine)
    assert_same_answers(runner.model, fresh, [answers[r][0] for r in again], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("when", ["in the prompt", "of one beam"])
def test_a_nan_in_a_search_with_beams_fails_that_request_alone(when: str, layout: str) -> None:
    runner = Broken(layout)
    expected = [run(runner, [text(runner, seed)])[0] for seed in range(3)]
    engine = Engine(runner, EngineConfig(max_num_seqs=8))
    searched = make_request(runner, random_text(20, 9), SamplingParams(temperature=0, max_tokens=8, num_beams=3))
    others, early = [text(runner, seed) for seed in range(3)], list[Output]()
    if when == "in the prompt":
        runner.nan_of = searched.input_ids.tolist()
    for request in (searched, *others):
        engine.add(request)
    if when == "of one beam":
        cache = engine.pool.cache
        while len(searched.sequences) < 3:
            early += engine.step()
        slot = searched.sequences[1].slot
        assert slot is not None
        with torch.inference_mode():
            lost = [state.fill_(torch.nan) for state in cache.save_state(slot)]
            cache.restore_state(slot, lost, cache.lengths[slot])
    failed: list[Output] = []
    answers = drive(engine, lambda output: failed.append(output) if output.error else None, may_fail=True)
    assert [(output.request, output.error) for output in failed] == [(searched, NO_SCORES)]
    begun = [[token for output in early if output.request is request for token in output.tokens] for request in others]
    kept = [first + answers[request][0] for first, request in zip(begun, others, strict=True)]
    assert_same_answers(runner.model, [text(runner, seed) for seed in range(3)], kept, expected)
    assert is_empty(engine)


@pytest.mark.parametrize("how", ["aborted", "late", "failed"])
def test_a_search_with_beams_that_ends_before_its_time_is_one_answer(how: str) -> None:
    runner = Broken("contiguous")
    engine = Engine(runner, EngineConfig(max_num_seqs=8))
    searched = make_request(runner, random_text(20, 9), SamplingParams(temperature=0, max_tokens=8, num_beams=3))
    engine.add(searched)
    while len(searched.sequences) < 3:
        assert engine.step() == []
    if how == "aborted":
        engine.abort(searched)
    elif how == "late":
        searched.deadline = time.monotonic()
    else:
        runner.fails_at = runner.forwards + 1
    outputs = engine.step()
    assert [output.index for output in outputs] == ([] if how == "aborted" else [0])
    ended = {why: engine.metrics.value("request_success_total", finished_reason=why) for why in ("abort", "error")}
    assert ended == {"abort": how != "failed", "error": how == "failed"}
    assert engine.metrics.value("e2e_request_latency_seconds_count") == 1
    assert is_empty(engine)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("at", [1, 3, 7])
def test_a_fault_of_a_step_fails_what_ran_and_the_engine_goes_on(at: int, layout: str) -> None:
    runner = Broken(layout)
    expected = [run(runner, [text(runner, seed)])[0] for seed in range(9)]
    engine = Engine(runner, EngineConfig(max_num_seqs=3))
    requests = [text(runner, seed) for seed in range(9)]
    runner.fails_at = runner.forwards + at
    for request in requests:
        engine.add(request)
    errors: dict[Request, str | None] = {}
    answers = drive(engine, lambda o: errors.update({o.request: o.error}) if o.error else None, may_fail=True)
    assert 1 <= len(errors) <= 3
    assert set(errors.values()) == {"the engine failed: RuntimeError"}
    left = [seed for seed, request in enumerate(requests) if request not in errors]
    kept = [answers[requests[seed]][0] for seed in left]
    assert_same_answers(runner.model, [text(runner, s) for s in left], kept, [expected[s] for s in left])
    assert is_empty(engine)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_that_runs_out_for_one_picture_costs_that_request_only(layout: str) -> None:
    runner = Broken(layout)
    expected = [run(runner, [picture(runner, seed)])[0] for seed in range(6)]
    engine = Engine(runner)
    requests = [picture(runner, seed) for seed in range(6)]
    runner.bad_patches = requests[2].patches
    for request in requests:
        engine.add(request)
    failed: list[Output] = []
    answers = drive(engine, lambda output: failed.append(output) if output.error else None, may_fail=True)
    assert [(o.request, o.error) for o in failed] == [(requests[2], "a picture could not be encoded: out of memory")]
    left = [seed for seed in range(6) if seed != 2]
    kept = [answers[requests[seed]][0] for seed in left]
    assert_same_answers(runner.model, [picture(runner, s) for s in left], kept, [expected[s] for s in left])
    assert is_empty(engine)


def test_memory_that_pytorch_cannot_have_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert reason(caught.value) == "out of memory"
    assert reason(RuntimeError("secret insides")) == "RuntimeError"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_memory_for_a_picture_of_two_requests_costs_those_two_only(layout: str) -> None:
    runner = Broken(layout)
    expected = [run(runner, [picture(runner, seed)])[0] for seed in range(4)]
    engine = Engine(runner)
    requests = [picture(runner, seed) for seed in (0, 1, 2, 2, 3)]
    runner.bad_patches = requests[2].patches
    for request in requests:
        engine.add(request)
    errors: dict[Request, str | None] = {}
    answers = drive(engine, lambda o: errors.update({o.request: o.error}) if o.error else None, may_fail=True)
    assert errors == dict.fromkeys(requests[2:4], "a picture could not be encoded: out of memory")
    assert [answers[requests[i]][0] for i in (0, 1, 4)] == [expected[0], expected[1], expected[3]]
    assert is_empty(engine)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_request_that_fails_while_it_decodes_leaves_the_others_in_their_slots(layout: str) -> None:
    """Of two answers one is pre-empted, and its picture cannot be encoded again: both are lost, nobody else."""
    runner = Broken(layout)
    others = [text(runner, seed, tokens=12) for seed in range(3)]
    expected = [run(runner, [text(runner, seed, tokens=12)])[0] for seed in range(3)]
    engine = Engine(runner, EngineConfig(max_num_seqs=6, prefix_cache_memory=0, encoder_cache_memory=0))
    views = [view(8, 8)]
    patches, params = random_patches(views, 7), SamplingParams(temperature=0, max_tokens=12, n=2)
    double = make_request(runner, prompt_with_views(views, seed=7), params, frozenset(), patches, views)
    for request in (double, *others):
        engine.add(request)
    answers: dict[Request, list[int]] = {request: [] for request in others}
    while engine.pool.decoding < 5:
        for output in engine.step():
            if output.request is not double:
                answers[output.request] += output.tokens
    engine.scheduler.preempt(double.sequences[1])
    runner.bad_patches = patches
    for request, choices in drive(engine, may_fail=True).items():
        if request is not double:
            answers[request] += choices[0]
    assert [sequence.finish_reason for sequence in double.sequences] == ["error", "error"]
    assert [answers[request] for request in others] == expected
    assert is_empty(engine)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupt_in_the_middle_of_a_step_reaches_whom_it_hit(layout: str) -> None:
    runner = Broken(layout)
    engine = Engine(runner)
    engine.add(text(runner, 0))
    engine.step()

    def interrupt(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    real, runner.forward = runner.forward, interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    runner.forward = real  # type: ignore[method-assign]
    assert [output.error for output in engine.step()] == ["interrupted"]
    assert is_empty(engine)
    late = text(runner, 0)
    engine.add(late)
    assert_same_answers(runner.model, [text(runner, 0)], drive(engine)[late], run(runner, [text(runner, 0)]))


def test_a_deadline_ends_a_request_wherever_it_is(runner: TorchRunner) -> None:
    engine = Engine(runner, EngineConfig(max_num_seqs=1))
    running, waiting, patient = text(runner, 0, tokens=10**4), text(runner, 1), text(runner, 2)
    for request in (running, waiting, patient):
        engine.add(request)
    engine.step()
    running.deadline = waiting.deadline = time.monotonic()
    ends = {}
    answers = drive(engine, lambda output: ends.update({output.request: output.finish_reason}), may_fail=True)
    assert [ends[r] for r in (running, waiting, patient)] == ["abort", "abort", "length"]
    assert_same_answers(runner.model, [text(runner, 2)], answers[patient], run(runner, [text(runner, 2)]))


def test_what_is_too_much_is_refused_at_once(runner: TorchRunner) -> None:
    engine = Engine(runner, EngineConfig(max_waiting=2))
    for seed in range(2):
        engine.add(text(runner, seed))
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        engine.add(text(runner, 2))
    assert engine.metrics.value("admission_rejections_total", reason="queue_full") == 1
    limit_cache(engine, 96)
    with pytest.raises(PromptError, match="the engine's cache has room for 96"):
        engine.add(text(runner, 3, length=96))
    with pytest.raises(ConfigError, match="already here"):
        engine.add(next(iter(engine.requests.values())))


def test_priorities_go_first_but_nobody_waits_forever(runner: TorchRunner) -> None:
    engine, order = Engine(runner, EngineConfig(max_num_seqs=1)), list[Request]()
    plain, urgent, soon, late = (text(runner, seed, priority=-min(seed, 1)) for seed in range(4))
    patient, new = text(runner, 4, priority=1), text(runner, 5, priority=1)
    # One step of priority is worth ten seconds.
    soon.arrival, late.arrival, patient.arrival = plain.arrival + 9, plain.arrival + 11, plain.arrival - 10.5
    for request in (new, plain, late, patient, soon, urgent):
        engine.add(request)
    drive(engine, lambda output: order.append(output.request) if output.finish_reason else None)
    assert order == [urgent, soon, patient, plain, late, new]


def test_closing_without_draining_tells_every_reader(runner: TorchRunner) -> None:
    async def close() -> list[str]:
        asynchronous = AsyncEngine(Engine(runner))

        async def reader(seed: int) -> str:
            async for output in asynchronous.generate(text(runner, seed, tokens=10**4)):
                if output.error:
                    return output.error
            return ""

        readers = [asyncio.create_task(reader(seed)) for seed in range(3)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(asynchronous.close, drain=False)
        with pytest.raises(RuntimeError, match="closed"):
            await anext(asynchronous.generate(text(runner, 9)))
        return await asyncio.gather(*readers)

    assert asyncio.run(close()) == ["the engine was closed"] * 3
