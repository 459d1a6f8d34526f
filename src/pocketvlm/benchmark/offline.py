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

from pocketvlm.benchmark.lines import Contender, Timed, Work, ended, line_of
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.machine import peak_resident_bytes

Spec = tuple[str, tuple[Any, ...]]  # kind of contender, its arguments
Progress = Callable[[str, int, int], None]


@dataclass
class Result:
    """What came of one contender: seconds of every round of each line, the largest memory it ever had, and why it ended
    before its time, if it did."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0
    work: dict[str, Work] = field(default_factory=dict)
    error: str = ""

    def share(self, line: str, ceilings: Mapping[str, float]) -> float | None:
        """Return how much of the machine's ceiling (10^9 a second) the median round reaches."""
        seconds, work = self.median(line), self.work.get(line)
        return work.amount / seconds / 1e9 / ceilings[work.ceiling] if seconds and work else None

    def median(self, line: str) -> float | None:
        return statistics.median(self.seconds[line]) if self.seconds.get(line) else None


def make(spec: Spec) -> Contender:
    """Make the contender that a specification describes."""
    kind, arguments = spec
    if kind == "pocketvlm":
        from pocketvlm.benchmark.runners import RunnerContender

        return RunnerContender(*arguments)
    if kind == "transformers":
        from pocketvlm.benchmark.transformers_peer import TransformersContender

        return TransformersContender(*arguments)
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
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if found == "error":
            raise ConfigError(str(value))
        assert found == kind, (found, kind)
        return value

    def _ended(self) -> ConfigError:
        """Why a process that says nothing more has ended."""
        self.process.join(5)
        how = ended(self.process.exitcode)
        return ConfigError(f"a process of the benchmark ended {how}", hint="Was there enough memory for all of them?")

    def run(self, line: str) -> float | None:
        """Run a line once; returns its seconds, None where this contender has no such line.

        Raises:
            PocketVLMError: the contender failed, or its process ended.
        """
        try:
            self.pipe.send(line)
        except OSError:
            raise self._ended() from None
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
    """Run every line in turn: one warm-up of each contender, then `rounds` times one run of each after the other.

    A contender that fails has its reason in its result, and the others go on without it.

    Raises:
        PocketVLMError: all have failed, or those that have not do none of the lines; the first one's reason.
    """
    results: list[Result] = []
    workers: list[Worker] = []
    errors: list[PocketVLMError] = []

    def run(worker: Worker, line: str) -> float | None:
        try:
            return worker.run(line)
        except PocketVLMError as error:
            worker.result.error = str(error)
            errors.append(error)
            workers.remove(worker)
            worker.close()
        return None

    with ExitStack() as stack:
        for spec in specs:
            try:
                worker = Worker(spec)
            except PocketVLMError as error:
                results.append(Result(spec[0], error=str(error)))
                errors.append(error)
                continue
            stack.callback(worker.close)
            workers.append(worker)
            results.append(worker.result)
        for line in lines:
            turns = min(rounds, line_of(line).rounds)
            able = [worker for worker in list(workers) if run(worker, line) is not None]
            for turn in range(turns):
                for worker in list(able):
                    seconds = run(worker, line)
                    if seconds is None:
                        able.remove(worker)
                        continue
                    worker.result.seconds.setdefault(line, []).append(seconds)
                if progress:
                    progress(line_of(line).label, turn + 1, turns)
        if errors and not (workers and any(result.seconds for result in results)):
            raise errors[0]
        return results


def ratio(of: Result, to: Result, line: str) -> float | None:
    """Return the median over the rounds of `to`'s seconds by `of`'s of the same round: above 1, `of` is faster."""
    pairs = list(zip(of.seconds.get(line, []), to.seconds.get(line, []), strict=False))
    return statistics.median(b / a for a, b in pairs) if pairs else None
