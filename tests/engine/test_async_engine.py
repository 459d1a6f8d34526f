"""An engine in its own thread: however it ends, every reader hears of it, and none is left waiting."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from helpers.engine_runs import make_request, torch_runner
from helpers.tiny_models import random_text, tiny_model

from pocketvlm.engine.async_engine import AsyncEngine
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import QueueFullError

BOUND = 60.0  # seconds after which a reader counts as left waiting, on however slow a machine
ENDLESS = 100_000


@pytest.fixture
def engine() -> Engine:
    return Engine(torch_runner(tiny_model(), "contiguous"), EngineConfig(max_num_seqs=2, max_waiting=1))


def request(engine: Engine, tokens: int = 3, *, n: int = 1, seed: int = 0, deadline: float | None = None) -> Request:
    params = SamplingParams(temperature=0, max_tokens=tokens, n=n, ignore_eos=True)
    return make_request(engine.runner, random_text(6, seed), params, deadline=deadline)


async def read(engine: AsyncEngine, asked: Request) -> list[Output]:
    return [output async for output in engine.generate(asked)]


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, BOUND)

    return asyncio.run(bounded())


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(BOUND)
    assert not thread.is_alive()


def test_a_request_that_comes_in_the_middle_of_closing_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing runs to its end between the first look at the engine and the order: nobody would carry it out."""
    running = AsyncEngine(engine)
    monkeypatch.setattr(engine, "check", lambda _: in_thread(running.close))
    with pytest.raises(RuntimeError, match="closed"):
        run(read(running, request(engine)))
    assert not running.streams


@pytest.mark.parametrize("drain", [True, False])
def test_closing_again_while_it_closes_ends(engine: Engine, drain: bool) -> None:
    async def ask() -> list[Any]:
        running = AsyncEngine(engine)
        asked = [request(engine, 3 if drain else ENDLESS, seed=i) for i in range(6)]
        tasks = [asyncio.create_task(read(running, one)) for one in asked]
        await asyncio.sleep(0)
        closing = [asyncio.to_thread(running.close, drain=drain) for _ in range(3)]
        await asyncio.gather(*closing)
        return await asyncio.gather(*tasks)

    for outputs in run(ask()):
        assert outputs[-1].finish_reason == ("length" if drain else "abort")
        assert (outputs[-1].error is None) == drain
    assert not engine.has_work


@pytest.mark.parametrize("place", ["step", "abort", "add"])
def test_a_fault_that_ends_the_thread_wakes_every_reader(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """What runs, what waits in the engine and what waits before it; with the answers that had not even begun."""

    def fail(*_: object) -> None:
        raise SystemError("a fault of ours")

    async def ask() -> tuple[list[list[Output]], str]:
        running = AsyncEngine(engine)
        asked = [request(engine, ENDLESS, n=2, seed=i) for i in range(6)]
        tasks = [asyncio.create_task(read(running, one)) for one in asked]
        leaving = asyncio.create_task(read(running, request(engine, ENDLESS)))
        while not any(one.sequences[0].output_ids for one in asked):
            await asyncio.sleep(0.001)
        if place == "add":  # whatever goes wrong where the thread does not expect it
            monkeypatch.setattr(AsyncEngine, "_admit", fail)
        else:
            monkeypatch.setattr(engine, place, fail)
        leaving.cancel()
        found = await asyncio.gather(*tasks)
        with pytest.raises(RuntimeError) as error:
            await read(running, request(engine))
        await asyncio.to_thread(running.close)
        return found, str(error.value)

    with caplog.at_level(logging.CRITICAL):
        found, message = run(ask())
    for outputs in found:
        last = {output.index: output for output in outputs}
        assert set(last) == {0, 1}
        assert all(output.error == message for output in last.values())
    assert "SystemError" in message
    assert "a fault of ours" in caplog.text


def test_all_answers_that_had_not_begun_are_told_of_a_close(engine: Engine) -> None:
    async def ask() -> list[Output]:
        running = AsyncEngine(engine)
        task = asyncio.create_task(read(running, request(engine, ENDLESS, n=3)))
        await asyncio.sleep(0)
        await asyncio.to_thread(running.close, drain=False)
        return await task

    outputs = run(ask())
    assert {output.index for output in outputs if output.error == "the engine was closed"} == {0, 1, 2}


def test_a_deadline_passes_while_a_request_waits_for_room(engine: Engine) -> None:
    async def ask() -> list[Output]:
        running = AsyncEngine(engine)
        others = [asyncio.create_task(read(running, request(engine, ENDLESS, seed=i))) for i in range(4)]
        await asyncio.sleep(0)
        outputs = await read(running, request(engine, deadline=time.monotonic()))
        await asyncio.to_thread(running.close, drain=False)
        await asyncio.gather(*others)
        return outputs

    (output,) = run(ask())
    assert output.error == "the deadline has passed"


def test_a_reader_whose_loop_has_ended_holds_no_one_up(engine: Engine) -> None:
    running = AsyncEngine(engine)
    loop = asyncio.new_event_loop()
    kept = running.generate(request(engine, ENDLESS))
    loop.run_until_complete(anext(kept))
    loop.close()  # without a word to its generators
    in_thread(running.close)
    assert not running.streams
    assert not engine.has_work


@pytest.mark.parametrize("tokens", [2, ENDLESS])
def test_a_reader_whose_loop_has_ended_counts_no_more_among_those_in_flight(engine: Engine, tokens: int) -> None:
    running = AsyncEngine(engine, max_in_flight=1)
    loop = asyncio.new_event_loop()
    kept = running.generate(request(engine, tokens))
    loop.run_until_complete(anext(kept))
    loop.close()
    assert run(read(running, request(engine, seed=1)))[-1].finish_reason == "length"
    in_thread(running.close)


def test_one_more_than_may_be_in_flight_is_refused_and_leaves_nothing(engine: Engine) -> None:
    async def ask() -> None:
        async with AsyncEngine(engine, max_in_flight=2) as running:
            tasks = [asyncio.create_task(read(running, request(engine, seed=i))) for i in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="2 requests"):
                await read(running, request(engine))
            await asyncio.gather(*tasks)
            assert (await read(running, request(engine)))[-1].finish_reason == "length"

    run(ask())


@pytest.mark.parametrize("seed", range(4))
def test_whenever_it_is_closed_every_reader_gets_its_answer_or_one_clear_error(seed: int) -> None:
    """Readers that come, leave and stay, on two event loops, while other threads close the engine."""
    rng = random.Random(seed)
    engine = Engine(torch_runner(tiny_model(), "contiguous"), EngineConfig(max_num_seqs=2, max_waiting=2))
    running, start = AsyncEngine(engine, max_in_flight=12), threading.Barrier(4, timeout=BOUND)
    found: list[Any] = []

    async def reader(delay: float, tokens: int, leaves: bool) -> str:
        await asyncio.sleep(delay)
        outputs = running.generate(request(engine, tokens, seed=tokens))
        async for output in outputs:
            if output.error is not None:
                return output.error
            if leaves:
                await outputs.aclose()
                return "left"
        return "whole" if output.finish_reason == "length" else "cut short"

    def loop(plans: list[tuple[float, int, bool]]) -> None:
        async def all_of_them() -> None:
            found.extend(await asyncio.gather(*(reader(*plan) for plan in plans), return_exceptions=True))

        start.wait()
        run(all_of_them())

    def closer(delay: float, drain: bool) -> None:
        start.wait()
        time.sleep(delay)
        running.close(drain=drain)

    plans = [(rng.uniform(0, 0.2), rng.randint(1, 30), rng.random() < 0.2) for _ in range(30)]
    threads = [threading.Thread(target=loop, args=(own,)) for own in (plans[:15], plans[15:])]
    threads += [threading.Thread(target=closer, args=(rng.uniform(0, 0.2), rng.random() < 0.5)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * BOUND)
        assert not thread.is_alive()
    assert len(found) == 30
    for one in found:
        assert one in ("whole", "left", "the engine was closed") or (
            isinstance(one, RuntimeError | QueueFullError)
            and ("closed" in str(one) or "12 requests are in flight" in str(one))
        ), one
    assert not running.streams
    assert not engine.has_work
