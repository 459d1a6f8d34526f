"""The Python interface for event loops: many conversations at once on one engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from pocketvlm.api.answers import Answer, Delta
from pocketvlm.api.job import Job
from pocketvlm.api.many import preparing_threads
from pocketvlm.api.shared_engine import refuse_to_travel
from pocketvlm.api.vlm import VLM
from pocketvlm.engine.async_engine import AsyncEngine
from pocketvlm.processing.abandonment import abandoned_by
from pocketvlm.processing.media.fetch import has_urls
from pocketvlm.processing.media_budget import Hold, held_by
from pocketvlm.ranges import Range

T = TypeVar("T")
Keep = Callable[[], Callable[[], None]]


def _parts_of(messages: object) -> Iterator[Mapping[str, Any]]:
    """The parts of messages that may have media; what is none is refused later."""
    for message in messages if isinstance(messages, list | tuple) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") != "text":
                yield part


class AsyncVLM:
    """A loaded model behind an event loop: `async with AsyncVLM(pocketvlm.load()) as vlm`.

    Pictures and prompts are prepared in threads of their own, ahead of the engine and never on its thread. The options
    are those of `VLM`.

    Args:
        vlm: the model; it is used through this object alone from now on.
        max_in_flight: requests running and waiting; one more is refused at once (`QueueFullError`).
        workers: threads that prepare; as many again for conversations with http(s) URLs.
    """

    def __init__(self, vlm: VLM, *, max_in_flight: int = 1024, workers: int | None = None) -> None:
        max_in_flight = Range(int, 1).check("max_in_flight", max_in_flight)
        workers = Range(int, 1, 1024, nullable=True).check("workers", workers)
        vlm.shared.process.check()
        self.vlm = vlm
        self.engine = AsyncEngine(vlm.engine, max_in_flight=max_in_flight)
        self._workers = preparing_threads(workers, start=True)
        # Those who wait for slow hosts wait in threads of their own, and hold up nobody who does not.
        self._fetching = preparing_threads(workers)

    async def prepare(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        keep: Keep | None = None,
        hold: Hold | None = None,
        **options: Any,
    ) -> Job:
        """Check a conversation and make it ready for the engine; errors are those of `VLM.chat`, and the two functions
        those of `in_worker`."""
        self.engine.check_alive()
        fetches = has_urls([*_parts_of(messages)])
        return await self.in_worker(self._prepare, messages, options, keep=keep, hold=hold, fetches=fetches)

    async def in_worker(
        self,
        work: Callable[..., T],
        *args: Any,
        keep: Keep | None = None,
        hold: Hold | None = None,
        fetches: bool = False,
    ) -> T:
        """The result of something that takes as long as preparing does, in one of the threads that prepare.

        Cancelled, it decodes nothing that it has not begun to decode.

        Args:
            keep: called when a thread is given `args`, and what it returns when the thread holds nothing of them any
                more: in any thread, and maybe some time after this was cancelled.
            hold: asked, in any thread, for the bytes that the work takes for media until it is done.
            fetches: it may wait for other hosts.
        """
        left, waiting = threading.Event(), [args]

        def call() -> T:
            with abandoned_by(left), held_by(hold):
                return work(*waiting.pop())

        future = (self._fetching if fetches else self._workers).submit(call)
        if keep is not None:
            let_go = keep()
            future.add_done_callback(lambda _future: let_go())
        try:
            return await asyncio.wrap_future(future)
        finally:
            left.set()
            waiting.clear()  # one that is cancelled stays in the queue until a thread comes to it

    def _prepare(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Job:
        self.engine.check_alive()  # it may have been closed while this waited for a thread
        return self.vlm.prepare(messages, options)

    async def run(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Answer what was prepared: what is new, of all `n` answers, as it comes."""
        async with aclosing(self.engine.generate(job.request)) as outputs:
            async for output in outputs:
                delta = job.take(output)
                if job.error is not None:
                    raise job.error
                if delta is not None:
                    if delta.finish_reason is not None and output.finish_reason is None:
                        self.engine.finish(job.request, output.index)
                    yield delta
                if job.is_done:
                    return

    async def stream(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> AsyncGenerator[str, None]:
        """Text of the first answer, piece by piece, without its reasoning (`run` yields both). One that is closed early
        is given up."""
        async with aclosing(self.run(await self.prepare(messages, **options))) as deltas:
            async for delta in deltas:
                if delta.text and delta.index == 0:
                    yield delta.text

    async def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Answer:
        """The whole answer."""
        job = await self.prepare(messages, **options)
        async with aclosing(self.run(job)) as deltas:
            async for _ in deltas:
                pass
        return job.answer()

    async def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and end, the model as well: with `drain` when those in flight are done, else now."""
        if not self.engine.process.is_here:
            return
        try:
            await asyncio.to_thread(self.engine.close, drain=drain)
        finally:
            # What waits for a thread is not cancelled: that would look as if its callers had been. It fails by itself.
            for pool in (self._workers, self._fetching):
                pool.shutdown(wait=False)
            await asyncio.to_thread(self.vlm.close)

    def __reduce__(self) -> NoReturn:
        refuse_to_travel(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(drain=error is None)
