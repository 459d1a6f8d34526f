"""Contenders taking turns, each in a process of its own: no shared threads, and a peak of memory for each.

A worker loads its contender, then answers one request at a time: a line is prepared, or run once.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pocketvlm.benchmark.lines import Contender, Timed, Work, line_of
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.machine import peak_resident_bytes

Spec = tuple[str, tuple[Any, ...]]  # kind of contender, its arguments
Progress = Callable[[str, int, int], None]


@dataclass
class Result:
    """What came of one contender: seconds of every round of each line, and the largest memory it ever had."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0
    work: dict[str, Work] = field(default_factory=dict)

    def share(self, line: str, ceilings: Mapping[str, float]) -> float | None:
        """Return how much of the machine's ceiling (10^9 a second) the median round reaches."""
        seconds, work = self.median(line), self.work.get(line)
        return work.amount / seconds / 1e9 / ceilings[work.ceiling] if seconds and work else None

    def median(self, line: str) -> float | None:
        return statistics.median(self.seconds[line]) if self.seconds.get(line) else None


def make(spec: Spec) -> Contender:
    """Make the contender that a specification describes."""
    from pocketvlm.benchmark import runners

    kind, arguments = spec
    if kind == "pocketvlm":
        return runners.RunnerContender(*arguments)
    if kind == "transformers":
        return runners.TransformersContender(*arguments)
    if kind == "llama.cpp":
        from pocketvlm.benchmark.llama_cpp import LlamaCppContender

        return LlamaCppContender(*arguments)
    raise ConfigError(f"there is no contender {kind!r}")


def peak_bytes() -> int:
    """Return the largest memory of this process so far, or of a program it ran; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(peak_resident_bytes(), (1 if sys.platform == "darwin" else 1024) * children)


def _work(pipe: Connection, spec: Spec) -> None:
    functions: dict[str, Timed | None] = {}
    try:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        contender = make(spec)
        pipe.send(("name", contender.name))
        while (order := pipe.recv()) is not None:
            line = str(order)
            if line not in functions:
                functions.clear()  # what the last line needed is given back
                functions[line] = contender.prepare(line)
            function = functions[line]
            pipe.send(("seconds", function() if function else None))
            pipe.send(("peak", peak_bytes()))
            pipe.send(("work", contender.work(line)))
    except PocketVLMError as error:
        pipe.send(("error", str(error)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the benchmark has ended
        pass
    except Exception as error:  # the parent says it in one line
        with suppress(OSError):
            pipe.send(("error", f"{spec[0]} failed: {type(error).__name__}: {error}"[:300]))


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes that are started here hear of Ctrl-C when they are ready for it: before, they print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """A contender in its own process."""

    def __init__(self, spec: Spec) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(other, spec), daemon=True)
        with _ctrl_c_held_back():
            self.process.start()
        other.close()
        try:
            self.result = Result(str(self._receive("name")))
        except (PocketVLMError, KeyboardInterrupt):
            self.close()
            raise

    def _receive(self, kind: str) -> Any:
        try:
            found, value = self.pipe.recv()
        except EOFError:
            raise ConfigError(
                "a process of the benchmark ended by itself", hint="Was there enough memory for all of them?"
            ) from None
        if found == "error":
            raise ConfigError(str(value))
        assert found == kind, (found, kind)
        return value

    def run(self, line: str) -> float | None:
        """Run a line once; returns its seconds, None where this contender has no such line."""
        self.pipe.send(line)
        seconds = self._receive("seconds")
        self.result.peak_bytes = max(self.result.peak_bytes, int(self._receive("peak")))
        if (work := self._receive("work")) is not None:
            self.result.work[line] = work
        return None if seconds is None else float(seconds)

    def close(self) -> None:
        with suppress(BrokenPipeError, OSError):
            self.pipe.send(None)
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()


def compete(specs: Sequence[Spec], lines: Sequence[str], rounds: int, progress: Progress | None = None) -> list[Result]:
    """Run every line in turn: one warm-up of each contender, then `rounds` times one run of each after the other."""
    with ExitStack() as stack:
        workers = []
        for spec in specs:
            worker = Worker(spec)
            stack.callback(worker.close)
            workers.append(worker)
        for line in lines:
            turns = min(rounds, line_of(line).rounds)
            able = [worker for worker in workers if worker.run(line) is not None]
            for turn in range(turns):
                for worker in able:
                    seconds = worker.run(line)
                    assert seconds is not None
                    worker.result.seconds.setdefault(line, []).append(seconds)
                if progress:
                    progress(line_of(line).label, turn + 1, turns)
        return [worker.result for worker in workers]


def ratio(of: Result, to: Result, line: str) -> float | None:
    """Return the median over the rounds of `to`'s seconds by `of`'s of the same round: above 1, `of` is faster."""
    pairs = list(zip(of.seconds.get(line, []), to.seconds.get(line, []), strict=False))
    return statistics.median(b / a for a, b in pairs) if pairs else None
