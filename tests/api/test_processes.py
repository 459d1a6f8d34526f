"""What belongs to one process says so in another; what may travel between processes does."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pocketvlm
from pocketvlm import errors
from pocketvlm.api.answers import Answer
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.trace import trace

MESSAGES = [{"role": "user", "content": "Hello"}]
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 3}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def vlm(seeded_checkpoint: Callable[[int], Path]) -> pocketvlm.VLM:
    return pocketvlm.load(seeded_checkpoint(0))


def in_fork(function: Callable[[], object]) -> str:
    """What `function` raises in a forked child, or that it did not; a child that hangs is ended."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that such a child may hang: this is what is tested
        pid = os.fork()
    if pid == 0:
        try:
            said = f"nothing was raised: {function()!r:.80}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    try:
        found = select.select([reading], [], [], 60)[0]
        if not found:
            os.kill(pid, signal.SIGKILL)
        return os.read(reading, 4096).decode() if found else "it hangs"
    finally:
        os.close(reading)
        os.waitpid(pid, 0)


@needs_fork
def test_a_forked_child_refuses_in_one_line_whatever_the_parent_was_doing(vlm: pocketvlm.VLM) -> None:
    vlm.chat(MESSAGES, **OPTIONS)
    stream = vlm.stream(MESSAGES, **OPTIONS)
    calls: list[Callable[[], object]] = [
        lambda: vlm.ask(None, "Hello?", **OPTIONS),
        lambda: vlm.chat(MESSAGES, **OPTIONS),
        lambda: vlm.stream(MESSAGES, **OPTIONS),
        lambda: vlm.batch([MESSAGES], **OPTIONS),
        lambda: vlm.batch([]),
        lambda: list(vlm.as_completed([(0, MESSAGES, OPTIONS)])),
        lambda: next(stream),
        lambda: next(stream.deltas()),
        lambda: trace(vlm, MESSAGES),
        lambda: AsyncVLM(vlm),
    ]
    held, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with vlm.shared._one_at_a_time, vlm._making_grammars:
            held.set()
            go_on.wait(600)

    thread = threading.Thread(target=work)
    thread.start()
    held.wait(60)
    try:
        for call in calls:
            said = in_fork(call)
            assert said.startswith(f"RuntimeError: the model was loaded in process {os.getpid()}"), said
            assert "\n" not in said
        assert in_fork(vlm.close).startswith("nothing was raised")  # it is the parent's
    finally:
        go_on.set()
        thread.join()
    assert "".join(stream) == vlm.chat(MESSAGES, **OPTIONS).text


@needs_fork
def test_a_forked_child_refuses_on_an_event_loop_too(vlm: pocketvlm.VLM) -> None:
    model = AsyncVLM(pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults))
    job = model.vlm.prepare(MESSAGES, OPTIONS)

    async def first(pieces: Any) -> object:
        return await anext(pieces)

    calls: list[Callable[[], Any]] = [
        lambda: model.chat(MESSAGES, **OPTIONS),
        lambda: first(model.stream(MESSAGES, **OPTIONS)),
        lambda: first(model.run(job)),
    ]
    try:
        with model.engine._lock:
            for call in calls:
                said = in_fork(lambda call=call: asyncio.run(call()))  # type: ignore[misc]
                assert said.startswith("RuntimeError: the model was loaded in process"), said
            assert in_fork(lambda: asyncio.run(model.close())).startswith("nothing was raised")
    finally:
        asyncio.run(model.close())


@needs_fork
def test_the_end_of_a_forked_child_ends_no_process_of_its_parent(seeded_checkpoint: Callable[[int], Path]) -> None:
    options = {**OPTIONS, "structured_outputs": pocketvlm.StructuredOutputs(choice=["yes", "no"])}
    with pocketvlm.load(seeded_checkpoint(0)) as vlm:
        vlm.chat(MESSAGES, **options)
        assert vlm._grammars is not None
        process = vlm._grammars._worker._process
        in_fork(vlm._grammars._worker._end)  # what the end of the interpreter, or the last reference, calls
        time.sleep(0.2)
        assert process.poll() is None


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_model_says_where_to_load_it_instead_of_travelling(vlm: pocketvlm.VLM, way: Callable[[Any], Any]) -> None:
    stream, model = vlm.stream(MESSAGES, **OPTIONS), AsyncVLM(pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults))
    for thing in (vlm, stream, model, [vlm]):
        if way is copy.copy and isinstance(thing, list):
            continue
        with pytest.raises(TypeError, match=r"pocketvlm.load.* in the worker") as error:
            way(thing)
        assert "\n" not in str(error.value)
    list(stream)
    asyncio.run(model.close())


def test_answers_hash_and_travel(vlm: pocketvlm.VLM) -> None:
    answer = vlm.chat(MESSAGES, temperature=1.0, seed=1, max_tokens=4, n=2, logprobs=2, enable_thinking=True)
    for other in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer), copy.copy(answer)):
        assert other == answer
        assert {answer: 1}[other] == 1
    assert isinstance(answer, Answer)
    deltas = list(vlm.stream(MESSAGES, logprobs=2, **OPTIONS).deltas())
    assert pickle.loads(pickle.dumps(deltas)) == deltas
    assert len({*deltas}) == len(deltas)


def test_errors_travel() -> None:
    found: list[Exception] = [errors.EngineError("lost"), errors.MissingExtraError("onnxruntime", "onnx")]
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PocketVLMError)
    ]
    found += [kind("what was given", hint="What to do.") for kind in kinds if kind is not errors.MissingExtraError]
    assert len(found) > 6
    for error in found:
        other = pickle.loads(pickle.dumps(error))
        assert (type(other), str(other)) == (type(error), str(error))
