"""Ctrl-C while one of several answers is waited for: that one may be lost, the others come whole or say that they will
not, and the model goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.interrupts import Lines

import pocketvlm
from pocketvlm.api.answers import Delta
from pocketvlm.api.stream import Stream
from pocketvlm.engine.request import Output
from pocketvlm.errors import EngineError


@pytest.fixture(scope="module")
def vlm(seeded_checkpoint: Callable[[int], Path]) -> pocketvlm.VLM:
    return pocketvlm.load(seeded_checkpoint(0))


def streams(vlm: pocketvlm.VLM) -> list[Stream]:
    """One runs to its length, one ends on a word, one has several answers."""
    options = ({}, {"stop": ["e"]}, {"n": 2})
    messages = [[{"role": "user", "content": f"Number {i}"}] for i in range(len(options))]
    return [vlm.stream(one, temperature=0, max_tokens=4, **more) for one, more in zip(messages, options, strict=True)]


def read(stream: Stream) -> list[str] | None:
    """The answers; None where they were interrupted."""
    try:
        deltas = list(stream.deltas())
    except EngineError:
        return None
    assert deltas[-1].finish_reason is not None
    return [one.text for one in (stream.answer, *stream.answer.alternatives)]


def test_an_interrupt_while_outputs_are_handed_out_costs_one_job_beside_that_of_its_reader(vlm: pocketvlm.VLM) -> None:
    expected = [read(stream) for stream in streams(vlm)]
    assert None not in expected
    lines = Lines("api/shared_engine", "api/job")
    with lines.watched():
        assert [read(stream) for stream in streams(vlm)] == expected
    for at in range(1, lines.count, 23):
        found, lines = list[list[str] | None](), Lines("api/shared_engine", "api/job", at=(at,))
        for stream in streams(vlm):
            try:
                with lines.watched():
                    found.append(read(stream))
            except KeyboardInterrupt:
                found.append(None)
                stream.close()
        where = f"line {at}: {found}"
        assert [one or other for one, other in zip(found, expected, strict=True)] == expected, where
        assert found.count(None) <= 2, where
    assert vlm.chat([{"role": "user", "content": "Number 0"}], temperature=0, max_tokens=4).text == expected[0][0]
    vlm.engine.check_integrity()
    assert not vlm.engine.has_work


def test_a_fault_with_one_answer_costs_no_other(vlm: pocketvlm.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [read(stream) for stream in streams(vlm)]
    first, second, third = streams(vlm)

    def broken(_output: object) -> None:
        raise ValueError("no such character")

    monkeypatch.setattr(second._job, "take", broken)
    assert read(first) == expected[0]
    with pytest.raises(EngineError, match="ValueError"):
        list(second.deltas())
    assert read(third) == expected[2]
    assert not vlm.engine.has_work


def test_the_last_words_are_read_while_another_thread_still_hands_them_out(
    vlm: pocketvlm.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is noted in a job before its last delta is there."""
    expected = list(vlm.stream([{"role": "user", "content": "Number 0"}], temperature=0, max_tokens=4))
    stream = vlm.stream([{"role": "user", "content": "Number 0"}], temperature=0, max_tokens=4)
    take, ended, looked = stream._job.take, threading.Event(), threading.Event()

    def slow(output: Output) -> Delta | None:
        delta = take(output)
        if stream._job.is_done:
            ended.set()
            looked.wait(0.2)  # where the reader does not wait for us, it has looked and gone by then
        return delta

    monkeypatch.setattr(stream._job, "take", slow)

    def drive() -> None:
        while not stream._job.is_done:
            vlm.shared.step()

    driver = threading.Thread(target=drive)
    driver.start()
    assert ended.wait(60)
    assert list(stream) == expected
    looked.set()
    driver.join()
