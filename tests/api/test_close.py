"""Closing a model: no process is left behind, from whichever thread and however often; what was begun is not lost."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.grammar.trial_worker import GrammarWorker

MESSAGES = [{"role": "user", "content": "Yes or no?"}]
YES_OR_NO = {"structured_outputs": pocketvlm.StructuredOutputs(choice=["yes", "no"]), "temperature": 0}


@pytest.fixture
def checkpoint(seeded_checkpoint: Callable[[int], Path]) -> Path:
    return seeded_checkpoint(0)


def children() -> set[int]:
    """Processes of ours, dead ones that nobody has waited for included."""
    gc.collect()
    ps = subprocess.Popen(["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, text=True)
    lines = [line.split() for line in ps.communicate()[0].splitlines()]
    return {int(pid) for pid, parent in lines if int(parent) == os.getpid()} - {ps.pid}


def test_a_context_ends_the_process_it_started_and_takes_no_more(checkpoint: Path) -> None:
    before = children()
    with pocketvlm.load(checkpoint) as vlm:
        assert vlm.chat(MESSAGES, **YES_OR_NO).text in ("yes", "no")
        assert len(children() - before) == 1
    assert children() == before
    vlm.close()
    for options in (YES_OR_NO, {}):
        with pytest.raises(RuntimeError, match="closed"):
            vlm.chat(MESSAGES, **options)
    assert children() == before


def test_closing_what_was_never_used_and_after_an_error_is_silent(checkpoint: Path) -> None:
    before = children()
    pocketvlm.load(checkpoint).close()

    def fail() -> None:
        with pocketvlm.load(checkpoint) as vlm:
            vlm.chat(MESSAGES, **YES_OR_NO)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert children() == before


def test_a_stream_that_was_begun_may_be_read_to_its_end(checkpoint: Path) -> None:
    with pocketvlm.load(checkpoint) as vlm:
        stream = vlm.stream(MESSAGES, **YES_OR_NO)
    assert "".join(stream) in ("yes", "no")


def test_threads_share_one_process_and_may_close_while_others_ask(checkpoint: Path) -> None:
    before = children()
    with pocketvlm.load(checkpoint) as vlm, ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(vlm.prepare, MESSAGES, YES_OR_NO) for _ in range(8)]:
            job.result()
        assert len(children() - before) == 1
        # Each its own grammar, so that all of them need the process.
        specs = [pocketvlm.StructuredOutputs(choice=[f"yes {i}", "no"]) for i in range(40)]
        jobs = [pool.submit(vlm.prepare, MESSAGES, {"structured_outputs": spec}) for spec in specs]
        jobs[3].result()
        for closing in [pool.submit(vlm.close) for _ in range(4)]:
            closing.result()
        faults = [job.exception() for job in jobs]
        assert all(fault is None or "closed" in str(fault) for fault in faults), faults
    assert children() == before


def test_a_trial_under_way_ends_with_the_process_and_none_follows_it() -> None:
    """As long as it is busy, nothing but its death brings an answer."""
    before, began, faults = children(), threading.Event(), list[BaseException]()
    worker = GrammarWorker(3, {0: 97}, {}, [2])

    def ask() -> None:
        began.set()
        try:
            worker.try_out("start: /a/")
        except RuntimeError as error:
            faults.append(error)

    worker._vocabulary = ["x" * 2**26]  # more than a pipe holds, and nothing that is a vocabulary
    thread = threading.Thread(target=ask)
    thread.start()
    began.wait()
    worker.close()
    thread.join()
    assert len(faults) == 1
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        worker.try_out("start: /a/")
    assert children() == before


@pytest.mark.parametrize("drain", [True, False])
def test_an_event_loop_ends_it_too(checkpoint: Path, drain: bool) -> None:
    before = children()

    async def ask() -> None:
        vlm = AsyncVLM(pocketvlm.load(checkpoint))
        assert (await vlm.chat(MESSAGES, **YES_OR_NO)).text in ("yes", "no")
        assert len(children() - before) == 1
        await asyncio.gather(vlm.close(drain=drain), vlm.close(drain=drain))
        with pytest.raises(RuntimeError, match="closed"):
            await vlm.chat(MESSAGES, **YES_OR_NO)

    asyncio.run(ask())
    assert children() == before


def test_closing_cancels_no_caller_that_waits_for_a_thread(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task was not cancelled by anybody: it gets an error, and `except Exception` sees it."""
    began, go_on = threading.Event(), threading.Event()

    async def ask() -> list[object]:
        model = pocketvlm.load(checkpoint)
        prepare = model.prepare

        def slow(messages: Any, options: Any) -> Any:
            began.set()
            go_on.wait(60)
            return prepare(messages, options)

        monkeypatch.setattr(model, "prepare", slow)
        vlm = AsyncVLM(model, workers=1)
        tasks = [asyncio.create_task(vlm.chat(MESSAGES, max_tokens=2)) for _ in range(4)]
        await asyncio.to_thread(began.wait, 60)
        await vlm.close()
        go_on.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    errors = asyncio.run(ask())
    assert all(isinstance(error, RuntimeError) for error in errors)
    assert all("closed" in str(error) for error in errors)


def test_a_program_that_closes_nothing_leaves_no_process(checkpoint: Path) -> None:
    script = (
        "import sys, pocketvlm\n"
        "vlm = pocketvlm.load(sys.argv[1])\n"
        "vlm.chat([{'role': 'user', 'content': 'x'}], structured_outputs=pocketvlm.StructuredOutputs(choice=['a']))\n"
        "print(vlm._grammars._worker._process.pid)"
    )
    pid = int(subprocess.run([sys.executable, "-c", script, checkpoint], capture_output=True, check=True).stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
