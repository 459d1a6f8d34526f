"""Times of single requests → the terms in which servers are compared, by the names that vLLM's benchmark gives them.

TTFT: from sending to the first token received. TPOT: (E2EL - TTFT) / (output tokens - 1), of each request. ITL: every
gap between two pieces of an answer, of all requests together. E2EL: from sending to the last byte. Goodput: requests
that meet every objective, a second.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OBJECTIVES = ("ttft", "tpot", "e2el")


@dataclass
class Record:
    """What happened to one request; times are seconds of one clock.

    Attributes:
        pieces: when each piece of the answer's text came.
        images: pictures that it had.
        failure: why there is no whole answer; empty where there is one.
    """

    sent: float
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    failure: str = ""

    @property
    def ttft(self) -> float:
        return (self.pieces[0] if self.pieces else self.ended) - self.sent

    @property
    def e2el(self) -> float:
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """None for answers of a single token."""
        return (self.e2el - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    def meets(self, objectives: Mapping[str, float]) -> bool:
        """Whether each time of `OBJECTIVES` that is named is at most so many milliseconds."""
        return all(1000 * (getattr(self, name) or 0.0) <= limit for name, limit in objectives.items())


def summary(records: Sequence[Record], objectives: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one run: times in milliseconds, rates a second. Failures are counted, and not timed."""
    done = [one for one in records if not one.failure]
    duration = max(one.ended for one in records) - min(one.sent for one in records)
    reasons: dict[str, int] = {}
    for one in records:
        if one.failure:
            reasons[one.failure] = reasons.get(one.failure, 0) + 1
    output = sum(one.output_tokens for one in done)
    found: dict[str, Any] = {
        "duration": round(duration, 3),
        "completed": len(done),
        "failed": len(records) - len(done),
        "failures": reasons,
        "total_input_tokens": sum(one.prompt_tokens for one in done),
        "total_output_tokens": output,
        "request_throughput": round(len(done) / duration, 3),
        "output_throughput": round(output / duration, 2),
        "total_token_throughput": round((output + sum(one.prompt_tokens for one in done)) / duration, 2),
        "image_throughput": round(sum(one.images for one in done) / duration, 3),
        "peak_concurrency": peak(records),
    }
    if objectives:
        found["request_goodput"] = round(sum(one.meets(objectives) for one in done) / duration, 3)
    gaps = [later - earlier for one in done for earlier, later in zip(one.pieces, one.pieces[1:], strict=False)]
    times = {
        "ttft": [one.ttft for one in done],
        "tpot": [one.tpot for one in done if one.tpot is not None],
        "itl": gaps,
        "e2el": [one.e2el for one in done],
    }
    for name, seconds in times.items():
        for word, value in statistics_of(seconds).items():
            found[f"{word}_{name}_ms"] = value
    return found


def statistics_of(seconds: Sequence[float]) -> dict[str, float | None]:
    """Mean, median and 99th percentile in milliseconds; None of nothing."""
    if not seconds:
        return dict.fromkeys(("mean", "median", "p99"))
    values = (statistics.fmean(seconds), statistics.median(seconds), float(np.percentile(seconds, 99)))
    return {word: round(1000 * value, 3) for word, value in zip(("mean", "median", "p99"), values, strict=True)}


def peak(records: Sequence[Record]) -> int:
    """The largest number of requests that were under way at a time."""
    changes = sorted([(one.sent, 1) for one in records] + [(one.ended, -1) for one in records])
    under_way = most = 0
    for _, change in changes:
        under_way += change
        most = max(most, under_way)
    return most
