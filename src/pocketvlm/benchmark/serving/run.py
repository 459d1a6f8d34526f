"""A whole run: warm up, send the load, take the figures; several rounds, in turns where there are two targets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketvlm.benchmark.serving.arrivals import Report, closed_loop, open_loop
from pocketvlm.benchmark.serving.figures import summary
from pocketvlm.benchmark.serving.targets import Target
from pocketvlm.benchmark.serving.workload import Workload
from pocketvlm.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a load is sent.

    Attributes:
        max_concurrency: of a closed loop.
        request_rate: requests a second of an open loop; None for a closed one.
        objectives: milliseconds that a request may take, by the names of `figures.OBJECTIVES`.
        warmup: requests beforehand, which are not measured.
    """

    max_concurrency: int = 8
    request_rate: float | None = None
    objectives: Mapping[str, float]
    warmup: int = 2
    rounds: int = 1


async def measure(
    targets: Mapping[str, Target], workload: Workload, plan: Plan, report: Report
) -> dict[str, list[dict[str, Any]]]:
    """The figures of every round, by target.

    Raises:
        EngineError: a request of the warm-up failed.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
    for number in range(plan.rounds):
        # A cold picture is new in each round, to each target alike.
        own = Workload(**{**vars(workload), "seed": workload.seed + 100_000 * number})
        bodies, before = own.bodies(), own.before(plan.warmup)
        for name, target in targets.items():
            for record in await closed_loop(target, before, 1, lambda *_: None):
                if record.failure:
                    raise EngineError(f"the first request to {name} failed: {record.failure}")
            if plan.request_rate is None:
                records = await closed_loop(target, bodies, plan.max_concurrency, report)
            else:
                records = await open_loop(target, bodies, plan.request_rate, own.seed, report)
            found[name].append(summary(records, plan.objectives))
    return found


def median_of(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One set of figures: the median over rounds of each number; counts of failures are added up."""
    one = dict(rounds[0])
    for name, value in one.items():
        values = [figures[name] for figures in rounds]
        if name == "failures":
            one[name] = {reason: sum(v.get(reason, 0) for v in values) for reason in set().union(*values)}
        elif name in ("completed", "failed"):
            one[name] = sum(values)
        elif value is not None:
            one[name] = round(statistics.median(v for v in values if v is not None), 3)
    return one
