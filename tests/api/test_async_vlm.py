"""Many conversations on an event loop: the answers are those of `VLM`, and readers may leave."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import write_checkpoint

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.many import preparing_threads
from pocketvlm.errors import MediaError
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.media_workers import taking_turns
from pocketvlm.processing.prompt.expansion import Units


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights"), seed=0)


def messages(i: int) -> list[dict[str, Any]]:
    pixels = np.random.default_rng(i % 3).integers(0, 256, (56, 84, 3), np.uint8)
    content = [{"type": "image", "image": pixels}, {"type": "text", "text": f"Question {i}"}]
    return [{"role": "user", "content": content}]


OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 6}


def test_answers_are_those_of_the_synchronous_face(checkpoint: Path) -> None:
    expected = [pocketvlm.load(checkpoint).chat(messages(i), **OPTIONS) for i in range(5)]

    async def ask() -> tuple[list[Any], str]:
        async with AsyncVLM(pocketvlm.load(checkpoint)) as vlm:
            answers = await asyncio.gather(*(vlm.chat(messages(i), **OPTIONS) for i in range(5)))
            pieces = [piece async for piece in vlm.stream(messages(0), **OPTIONS)]
            return answers, "".join(pieces)

    answers, streamed = asyncio.run(ask())
    assert [a.token_ids for a in answers] == [e.token_ids for e in expected]
    assert [a.text for a in answers] == [e.text for e in expected]
    assert streamed == expected[0].text


def test_a_stop_string_ends_an_answer_and_frees_its_row(checkpoint: Path) -> None:
    plain = pocketvlm.load(checkpoint).chat(messages(1), **{**OPTIONS, "max_tokens": 40})
    stop = plain.text[3:5]

    async def ask() -> Any:
        async with AsyncVLM(pocketvlm.load(checkpoint)) as vlm:
            answer = await vlm.chat(messages(1), **{**OPTIONS, "max_tokens": 10_000, "stop": stop})
            while vlm.engine.engine.requests:
                await asyncio.sleep(0.001)
            return answer

    answer = asyncio.run(ask())
    assert answer.finish_reason == "stop"
    assert answer.text == plain.text[: plain.text.index(stop)]


def test_a_reader_that_leaves_gives_its_answer_up_and_bad_input_is_its_own_error(checkpoint: Path) -> None:
    async def ask() -> Any:
        async with AsyncVLM(pocketvlm.load(checkpoint)) as vlm:
            steady = asyncio.create_task(vlm.chat(messages(0), **{**OPTIONS, "max_tokens": 100}))
            stream = vlm.stream(messages(1), **{**OPTIONS, "max_tokens": 10_000})
            await anext(stream)
            await stream.aclose()
            with pytest.raises(MediaError):
                await vlm.chat([{"role": "user", "content": [{"type": "image", "image": b"nothing"}]}], **OPTIONS)
            with pytest.raises(pocketvlm.ConfigError, match="temprature"):
                await vlm.chat(messages(0), temprature=1)
            return await steady

    assert asyncio.run(ask()).usage.completion_tokens <= 100


def preparing() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("pocketvlm-prepare")}


def test_threads_that_prepare_are_all_there_from_the_start(checkpoint: Path) -> None:
    before = preparing()

    async def ask() -> Any:
        async with AsyncVLM(pocketvlm.load(checkpoint), workers=5) as vlm:
            first = preparing() - before
            await asyncio.gather(*(vlm.chat(messages(i), **OPTIONS) for i in range(7)))
            return first, preparing() - before

    first, last = asyncio.run(ask())
    assert len(first) == 5
    assert first == last


def test_no_thread_is_left_waiting_where_the_system_allows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = preparing(), threading.Thread.start
    together = threading.Barrier(8)
    monkeypatch.setattr(threading, "Barrier", lambda _: together)

    def limited(thread: threading.Thread) -> None:
        if len(preparing() - before) == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="start new thread"):
        preparing_threads(8, start=True)
    waits = not together.broken
    together.abort()  # also where the test fails: such threads would not let the interpreter end
    for thread in preparing() - before:
        thread.join(10)
    assert not waits
    assert preparing() <= before


def test_what_nobody_waits_for_any_more_is_not_decoded(checkpoint: Path) -> None:
    count, gate = 4, threading.Event()
    here, gone = threading.Semaphore(0), threading.Semaphore(0)
    decoded: list[MediaTask] = []

    def decode(task: MediaTask) -> list[Units]:
        decoded.append(task)
        gate.wait(60)
        return encode_media(task)

    in_turn = taking_turns(decode, 1)

    def encode(task: MediaTask) -> list[Units]:
        here.release()
        try:
            return in_turn(task)
        finally:
            gone.release()

    async def ask() -> None:
        async with AsyncVLM(pocketvlm.load(checkpoint), workers=count) as vlm:
            vlm.vlm.processor.encode = encode
            asked = [asyncio.create_task(vlm.chat(messages(i), **OPTIONS)) for i in range(count)]
            for _ in range(count):
                assert await asyncio.to_thread(here.acquire, timeout=60)
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            gate.set()
            for _ in range(count):
                assert await asyncio.to_thread(gone.acquire, timeout=60)
            assert len(decoded) == 1, "only what had begun"
            assert (await vlm.chat(messages(0), **OPTIONS)).text

    asyncio.run(ask())
