"""When requests are sent: as many at a time as allowed (closed loop), or at random moments (open loop, Poisson)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from pocketvlm.benchmark.serving.figures import Record
from pocketvlm.benchmark.serving.targets import Target
from pocketvlm.benchmark.serving.workload import Body

Report = Callable[[int, int], None]


async def closed_loop(target: Target, bodies: Sequence[Body], concurrency: int, report: Report) -> list[Record]:
    """So many requests are under way at any time: the next is sent when one has ended."""
    records, waiting = list[Record](), iter(bodies)

    async def one_after_another() -> None:
        for body in waiting:
            records.append(await target.ask(body))
            report(len(records), len(bodies))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(bodies))):
            group.create_task(one_after_another())
    return records


async def open_loop(target: Target, bodies: Sequence[Body], rate: float, seed: int, report: Report) -> list[Record]:
    """Requests are sent at `rate` a second on average, whatever becomes of those before."""
    records, draw = list[Record](), random.Random(seed)

    async def ask(body: Body) -> None:
        records.append(await target.ask(body))
        report(len(records), len(bodies))

    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(ask(body))
            await asyncio.sleep(draw.expovariate(rate))
    return records
