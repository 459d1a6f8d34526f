"""More requests than the engine's queue takes: their callers wait, nothing is lost, and nothing is mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.errors import ConfigError, PromptError, QueueFullError

OPTIONS: dict[str, Any] = {"temperature": 2.0, "seed": 1, "max_tokens": 4}


@pytest.fixture(scope="module")
def plain(seeded_checkpoint: Callable[[int], Path]) -> pocketvlm.VLM:
    return pocketvlm.load(seeded_checkpoint(0))


@pytest.fixture
def narrow(plain: pocketvlm.VLM) -> pocketvlm.VLM:
    """Runs two at a time, and lets one wait."""
    config = pocketvlm.EngineConfig(max_num_seqs=2, max_waiting=1)
    return pocketvlm.VLM(plain.runner, plain.processor, plain.defaults, engine_config=config)


def about(i: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"Number {i}"}]


@pytest.fixture(scope="module")
def expected(plain: pocketvlm.VLM) -> list[str]:
    return [answer.text for answer in plain.batch([about(i) for i in range(40)], **OPTIONS)]


def test_all_40_are_answered_each_under_its_own_key(narrow: pocketvlm.VLM, expected: list[str]) -> None:
    assert len(set(expected)) > 5
    found: dict[int, Any] = dict(narrow.as_completed(((i, about(i), OPTIONS) for i in range(40)), ahead=32))
    assert [found[i][0].text for i in range(40)] == expected
    assert [answer.text for answer in narrow.batch([about(i) for i in range(40)], **OPTIONS)] == expected
    assert not narrow.engine.has_work
    assert narrow.engine.metrics.value("admission_rejections_total", reason="queue_full") == 0


def test_threads_and_streams_that_nobody_reads_leave_room_in_time(narrow: pocketvlm.VLM, expected: list[str]) -> None:
    unread = [narrow.stream(about(i), **OPTIONS) for i in range(6)]
    found: dict[int, Any] = dict(narrow.as_completed((i, about(i), OPTIONS) for i in range(6, 12)))
    assert [found[i][0].text for i in range(6, 12)] == expected[6:12]
    assert ["".join(stream) for stream in unread] == expected[:6]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: narrow.chat(about(i), **OPTIONS).text, range(12, 30))) == expected[12:30]


def test_an_event_loop_loses_none_within_max_in_flight_and_refuses_the_next(
    narrow: pocketvlm.VLM, expected: list[str]
) -> None:
    async def ask() -> list[Any]:
        async with AsyncVLM(narrow, max_in_flight=20) as vlm:
            jobs = [await vlm.prepare(about(i), **OPTIONS) for i in range(24)]

            async def answer(i: int) -> str:
                async for _ in vlm.run(jobs[i]):
                    pass
                return jobs[i].answer().text

            found = await asyncio.gather(*map(answer, range(24)), return_exceptions=True)
            return [*found, vlm.engine.engine.has_work]

    *found, has_work = asyncio.run(ask())
    assert found[:20] == expected[:20]
    assert all(isinstance(error, QueueFullError) and "20 requests" in str(error) for error in found[20:])
    assert not has_work


def test_readers_that_leave_while_they_wait_for_room_are_forgotten(narrow: pocketvlm.VLM, expected: list[str]) -> None:
    async def ask() -> tuple[str, bool]:
        async with AsyncVLM(narrow) as vlm:
            endless = {**OPTIONS, "max_tokens": 100_000, "ignore_eos": True}
            tasks = [asyncio.create_task(vlm.chat(about(i), **endless)) for i in range(10)]
            while len(vlm.engine.streams) < 10:
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return (await vlm.chat(about(0), **OPTIONS)).text, bool(vlm.engine.streams)

    assert asyncio.run(ask()) == (expected[0], False)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_those_that_wait_for_room_too(narrow: pocketvlm.VLM, expected: list[str], drain: bool) -> None:
    async def ask() -> list[Any]:
        vlm = AsyncVLM(narrow)
        options = OPTIONS if drain else {**OPTIONS, "max_tokens": 100_000, "ignore_eos": True}
        tasks = [asyncio.create_task(vlm.chat(about(i), **options)) for i in range(10)]
        while not vlm.engine.streams:
            await asyncio.sleep(0.001)
        await vlm.close(drain=drain)
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    found = asyncio.run(ask())
    if drain:
        for i, one in enumerate(found):  # those still in preparation then are too late
            assert (isinstance(one, RuntimeError) and "closed" in str(one)) or one.text == expected[i]
        assert any(not isinstance(one, RuntimeError) for one in found)
    else:
        assert all(isinstance(one, RuntimeError) and "closed" in str(one) for one in found)


@pytest.mark.parametrize(
    "item",
    [None, "abc", 5, (), ("key", about(1)), ("key", about(1), OPTIONS, 1), {"key": 1, "messages": 2, "options": 3}],
)
def test_an_item_that_is_no_request_is_named_after_all_before_it_are_answered(
    plain: pocketvlm.VLM, expected: list[str], item: Any
) -> None:
    read: list[int] = []

    def requests() -> Iterator[Any]:
        for i in range(3):
            yield i, about(i), OPTIONS
        yield item
        read.append(1)

    found: dict[int, Any] = {}
    with pytest.raises(PromptError, match=r"request 4 .*expected \(key, messages, options\)") as error:  # noqa: PT012
        for key, answers in plain.as_completed(requests()):
            found[key] = answers
    assert "\n" not in str(error.value)
    assert [found[i][0].text for i in range(3)] == expected[:3]
    assert not read
    assert not plain.engine.has_work


def test_keys_may_be_none_and_options_of_a_wrong_kind_are_that_requests_own_error(
    plain: pocketvlm.VLM, expected: list[str]
) -> None:
    asked: list[Any] = [(None, about(0), OPTIONS), ("a", about(1), None), ("b", None, OPTIONS), ("c", about(2), [1])]
    found: dict[Any, Any] = dict(plain.as_completed(asked))
    assert found[None][0].text == expected[0]
    assert all(isinstance(found[key], pocketvlm.PocketVLMError) for key in "abc")


@pytest.mark.parametrize("ahead", [0, -1, None, 1.5, True, "3"])
def test_ahead_is_a_number_of_requests(plain: pocketvlm.VLM, ahead: Any) -> None:
    with pytest.raises(ConfigError, match="ahead="):
        plain.as_completed([], ahead=ahead)


@pytest.mark.parametrize("conversations", [None, 5, "Hello"])
def test_a_batch_is_of_conversations(plain: pocketvlm.VLM, conversations: Any) -> None:
    with pytest.raises(PromptError, match="conversations"):
        plain.batch(conversations)
