"""An engine in a thread of its own, for event loops: requests in, `async for` their news out.

Orders (add, finish, abort) wait in a queue and are carried out between steps. News of a step are handed to each event
loop in one call. A reader that is slow or gone holds nothing up: what it has not read waits with its stream, and a
stream that is closed early gives its request up.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Output, Request
from pocketvlm.errors import QueueFullError

Order = Callable[[], None]


class OutputStream:
    """News of one request, for one event loop."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.news: deque[Output] = deque()
        self.open_choices = set(range(request.params.n))
        self._more = asyncio.Event()

    def put(self, output: Output) -> None:
        """Within the event loop."""
        self.news.append(output)
        self._more.set()

    async def next(self) -> Output:
        while not self.news:
            self._more.clear()
            await self._more.wait()
        output = self.news.popleft()
        if output.finish_reason is not None:
            self.open_choices.discard(output.index)
        return output


class AsyncEngine:
    """Args:
    engine: from now on, only this thread touches it.
    max_in_flight: requests running and waiting; one more is refused at once.
    """

    def __init__(self, engine: Engine, *, max_in_flight: int = 1024) -> None:
        self.engine, self.max_in_flight = engine, max_in_flight
        self.streams: dict[Request, OutputStream] = {}
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pocketvlm-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """News of a request until all its answers have ended.

        Raises:
            QueueFullError: too many requests are in flight; try again later.
            PocketVLMError: the request can never be honoured.
            RuntimeError: the engine is closed.
        """
        if not self.is_alive:
            raise RuntimeError("the engine is closed")
        if self._in_flight >= self.max_in_flight:
            self.engine.metrics.rejections.labels("queue_full").inc()
            raise QueueFullError(f"{self.max_in_flight} requests are in flight", hint="Try again later.")
        self.engine.check(request)
        stream = OutputStream(request)
        self._in_flight += 1
        try:
            self._orders.put(lambda: self._add(request, stream))
            while stream.open_choices:
                yield await stream.next()
        finally:
            self._in_flight -= 1
            if stream.open_choices:
                self._orders.put(lambda: self._abort(request))

    def finish(self, request: Request, index: int) -> None:
        """End one answer whose reader saw a stop string."""

        def order() -> None:
            self.engine.finish(request, index)
            if request.is_finished:
                self.streams.pop(request, None)

        self._orders.put(order)

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and end: with `drain` when those in flight are done, else now."""
        self._closing = True
        if not drain:
            self._orders.put(self._abort_all)
        self._orders.put(None)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close, drain=error is None)

    def _run(self) -> None:
        last = False
        while True:
            while not last and (not self.engine.has_work or not self._orders.empty()):
                order = self._orders.get()
                if order is None:
                    last = True
                else:
                    order()
            while last and not self._orders.empty():
                if (order := self._orders.get()) is not None:
                    order()
            if not self.engine.has_work:
                return
            self._tell(self.engine.step())

    def _add(self, request: Request, stream: OutputStream) -> None:
        try:
            self.engine.add(request)
        except Exception as error:  # its own fault, found late: the stream says so
            self._hand_over(
                stream, [Output(request, i, finish_reason="error", error=str(error)) for i in range(request.params.n)]
            )
        else:
            self.streams[request] = stream

    def _abort(self, request: Request) -> None:
        self.engine.abort(request)
        self.streams.pop(request, None)

    def _abort_all(self) -> None:
        lost = [
            Output(sequence.request, sequence.index, finish_reason="abort", error="the engine was closed")
            for request in self.streams
            for sequence in request.sequences
            if sequence.finish_reason is None
        ]
        for request in list(self.streams):
            self.engine.abort(request)
        self._tell(lost)

    def _tell(self, outputs: list[Output]) -> None:
        by_stream: dict[OutputStream, list[Output]] = {}
        for output in outputs:
            if (stream := self.streams.get(output.request)) is not None:
                by_stream.setdefault(stream, []).append(output)
        for stream, news in by_stream.items():
            self._hand_over(stream, news)
            if stream.request.is_finished:
                self.streams.pop(stream.request, None)

    @staticmethod
    def _hand_over(stream: OutputStream, news: list[Output]) -> None:
        def put() -> None:
            for output in news:
                stream.put(output)

        try:
            stream.loop.call_soon_threadsafe(put)
        except RuntimeError:  # its loop has ended, and its reader with it
            return
