"""Steps in turns, each contender in a process of its own; a step of each before anything is counted."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pocketvlm.benchmark.offline import peak_bytes
from pocketvlm.benchmark.tuning.contenders import Contender, Job, OurTrainer, PeftLoop, timed_step
from pocketvlm.errors import ConfigError, EngineError, PocketVLMError

KINDS: dict[str, Callable[[Job], Contender]] = {"pocketvlm": OurTrainer, "peft": PeftLoop}
LOSSES_AGREE = 1e-3  # of the first step, relative: products have other orders, and 4-bit layers other kernels
_here: dict[str, Contender] = {}  # of a process of this benchmark


@dataclass
class Found:
    """What came of one contender.

    Attributes:
        seconds: of each step that counts.
        losses: of every step, the first of which is before anything was learnt.
        samples, tokens: of the steps that count; padding is no token.
        peak_bytes: most memory at a time while it learnt: of the device, or of the process on a CPU.
    """

    name: str
    samples: int
    tokens: int
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def figures(self) -> dict[str, Any]:
        """As `--json` gives them; rates by the median step."""
        per_step = statistics.median(self.seconds) * len(self.seconds)
        return {
            "name": self.name,
            "seconds": [round(one, 4) for one in self.seconds],
            "samples_s": round(self.samples / per_step, 4),
            "tokens_s": round(self.tokens / per_step, 2),
            "peak_bytes": self.peak_bytes,
            "losses": [round(one, 6) for one in self.losses],
        }


def compete(job: Job, kinds: list[str], progress: Callable[[str, int, int], None] | None = None) -> list[Found]:
    """Let them learn in turns.

    Raises:
        ConfigError: one of them cannot be made here.
        EngineError: a process ended by itself; or the first losses differ, so that they did not do the same.
    """
    assert job.settings.steps is not None
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)) for _ in kinds
        ]
        try:
            found = [Found(*pool.submit(_make, kind, job).result()) for pool, kind in zip(pools, kinds, strict=True)]
            for number in range(job.settings.steps):
                for one, pool in zip(found, pools, strict=True):
                    seconds, loss, one.peak_bytes = pool.submit(_step, number).result()
                    one.losses.append(loss)
                    if number:
                        one.seconds.append(seconds)
                if progress:
                    progress("Steps", number + 1, job.settings.steps)
        except BrokenProcessPool:
            raise EngineError("a process of the benchmark ended by itself: was there enough memory?") from None
    first = [one.losses[0] for one in found]
    if max(first) - min(first) > LOSSES_AGREE * abs(first[0]):
        raise EngineError(f"the first losses differ: {', '.join(f'{one:.6f}' for one in first)}: not the same work")
    return found


def ratios(ours: Found, theirs: Found) -> dict[str, float]:
    """Our speed by theirs, the median over pairs of steps; our memory by theirs."""
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    return {
        "speed": round(statistics.median(b / a for a, b in pairs), 3),
        "memory": round(ours.peak_bytes / theirs.peak_bytes, 3),
    }


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: no traceback of each


def _make(kind: str, job: Job) -> tuple[str, int, int]:
    try:
        made = _here["contender"] = KINDS[kind](job)
    except PocketVLMError as error:
        raise ConfigError(str(error)) from None  # of one argument, so that it can be sent
    if made.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(made.device)
    else:
        with suppress(OSError):  # what loading took is not what learning takes; Linux can forget it
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    counted = [example for step in made.examples[1:] for example in step]
    return made.name, len(counted), sum(len(example.input_ids) for example in counted)


def _step(number: int) -> tuple[float, float, int]:
    made = _here["contender"]
    seconds, loss = timed_step(made, number)
    peak = torch.cuda.max_memory_allocated(made.device) if made.device.type == "cuda" else peak_bytes()
    return seconds, loss, peak
