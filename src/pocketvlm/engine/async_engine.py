"""An engine in a thread of its own, for event loops: requests in, `async for` their outputs out.

Orders (add, finish, abort) wait in a queue and are carried out between steps. Outputs of a step are handed to each
event loop in one call. A reader that is slow or gone holds nothing up: what it has not read waits with its stream, and
a stream that is closed early gives its request up. However the thread ends, every stream ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Self

from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import FinishReason, Output, Request
from pocketvlm.errors import PocketVLMError, QueueFullError, UnavailableError
from pocketvlm.machine import OwnProcess

logger = logging.getLogger(__name__)
Order = Callable[[], None]


class OutputStream:
    """Outputs of one request, for one event loop; used within it.

    Attributes:
        ended: nothing more will come.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.outputs: deque[Output] = deque()
        self.ended = False
        self._more = asyncio.Event()

    def put(self, outputs: Sequence[Output], is_last: bool) -> None:
        self.outputs.extend(outputs)
        self.ended |= is_last
        self._more.set()

    async def next(self) -> Output | None:
        """The next output; None at the end."""
        while not self.outputs and not self.ended:
            self._more.clear()
            await self._more.wait()
        return self.outputs.popleft() if self.outputs else None


Delivery = tuple[OutputStream, Sequence[Output], bool]  # whose, what, and whether it is the last


class AsyncEngine:
    """Args:
    engine: from now on, only this thread touches it.
    max_in_flight: requests running and waiting; one more is refused at once.

    Attributes:
        fault: why it has ended by itself; empty if it has not.
        steps, is_stepping: begun so far, and whether the last of them is under way, for whoever watches.
    """

    def __init__(self, engine: Engine, *, max_in_flight: int = 1024) -> None:
        self.engine, self.max_in_flight = engine, max_in_flight
        self.streams: dict[Request, OutputStream] = {}
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._held: deque[Request] = deque()  # taken, and waiting for room in the engine's own queue
        self._in_flight: set[OutputStream] = set()
        self._lock = threading.Lock()  # of `_in_flight` and `_closing`: no request is taken that nobody would see
        self._closing, self.fault = False, ""
        self.steps, self.is_stepping = 0, False
        self.process = OwnProcess()
        self._thread = threading.Thread(target=self._run, name="pocketvlm-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    def check_alive(self) -> None:
        """`UnavailableError` when no requests are taken, and in a forked child, which does not have the thread."""
        self.process.check()
        if not self.is_alive:
            raise UnavailableError(self.fault or "the engine is closed")

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs of a request until all its answers have ended.

        Raises:
            QueueFullError: too many requests are in flight; try again later.
            PocketVLMError: the request can never be honoured.
            UnavailableError: the engine is closed.
        """
        self.check_alive()
        self.engine.check(request)
        stream = OutputStream(request)
        self._take(stream)
        try:
            while (output := await stream.next()) is not None:
                yield output
        finally:
            with self._lock:
                self._in_flight.discard(stream)
            if not stream.ended:
                self._orders.put(lambda: self._abort(request))

    def _take(self, stream: OutputStream) -> None:
        with self._lock:
            self.check_alive()  # a thread that closes has not taken its last order yet
            if len(self._in_flight) >= self.max_in_flight:  # readers whose loop has ended will not say that they left
                self._in_flight = {one for one in self._in_flight if not one.loop.is_closed()}
            if len(self._in_flight) >= self.max_in_flight:
                self.engine.metrics.rejections.labels("queue_full").inc()
                raise QueueFullError(f"{self.max_in_flight} requests are in flight", hint="Try again later.")
            self._in_flight.add(stream)
            self.streams[stream.request] = stream
            self._orders.put(lambda: self._held.append(stream.request))

    def finish(self, request: Request, index: int) -> None:
        """End one answer whose reader saw a stop string."""

        def order() -> None:
            self.engine.finish(request, index)
            if request.is_finished and (stream := self.streams.pop(request, None)) is not None:
                _wake(stream.loop, [(stream, (), True)])

        self._orders.put(order)

    def abort_all(self) -> None:
        """Have all that runs and waits given up; their streams say so."""
        self._orders.put(self._abort_all)

    def give_up(self, fault: str) -> None:
        """Take no more requests, whatever the thread does: it may never come back."""
        with self._lock:
            self._closing, self.fault = True, fault

    @property
    def stack(self) -> str:
        """Where the thread is; empty when it has ended."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and end: with `drain` when those in flight are done, else now. A forked child, which
        has no such thread, ends nothing."""
        if not self.process.is_here:
            return
        with self._lock:
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
        try:
            self._serve()
        except BaseException as error:  # whatever it is, those who wait must hear of it
            logger.critical("the engine's thread has ended", exc_info=error)
            self.fault = f"the engine failed ({type(error).__name__}) and takes no more requests"
        finally:
            self.is_stepping = False
            with self._lock:
                self._closing = True
            for request in list(self.streams):
                self._lose(request, "error", self.fault or "the engine was closed")

    def _serve(self) -> None:
        last = False
        while True:
            while not last and (not self.engine.has_work or not self._orders.empty()):
                order = self._orders.get()
                if order is None:
                    last = True
                else:
                    order()
                    self._admit()
                if not self.engine.has_work:  # of what was given up no step will tell
                    self.engine.set_gauges()
            while last and not self._orders.empty():
                if (order := self._orders.get()) is not None:
                    order()
            self._admit()
            if not self.engine.has_work:
                return
            self.steps += 1
            self.is_stepping = True
            outputs = self.engine.step()
            self.is_stepping = False
            self._tell(outputs)

    def _admit(self) -> None:
        """Those that wait for room go in, in order, as far as there is any."""
        while self._held and self.engine.has_room:
            request = self._held.popleft()
            try:
                self.engine.add(request)
            except Exception as error:  # its own fault, found late: the stream says so
                if not isinstance(error, PocketVLMError):
                    logger.error("a request could not be added", exc_info=error)
                self._lose(request, "error", str(error))
        now = time.monotonic()
        for request in [one for one in self._held if one.deadline is not None and now >= one.deadline]:
            self._held.remove(request)
            self._lose(request, "abort", "the deadline has passed")

    def _abort(self, request: Request) -> None:
        self.engine.abort(request)
        self.streams.pop(request, None)
        if request in self._held:
            self._held.remove(request)

    def _abort_all(self) -> None:
        self._held.clear()
        for request in list(self.streams):
            self._lose(request, "abort", "the engine was closed")
            self.engine.abort(request)

    def _lose(self, request: Request, reason: FinishReason, error: str) -> None:
        """Tell a stream that those of its answers that have not ended never will."""
        if (stream := self.streams.pop(request, None)) is not None:
            ended = {sequence.index for sequence in request.sequences if sequence.finish_reason is not None}
            lost = [i for i in range(request.params.n) if i not in ended]
            outputs = [Output(request, i, finish_reason=reason, error=error) for i in lost]
            _wake(stream.loop, [(stream, outputs, True)])

    def _tell(self, outputs: list[Output]) -> None:
        by_stream: dict[OutputStream, list[Output]] = {}
        for output in outputs:
            if (stream := self.streams.get(output.request)) is not None:
                by_stream.setdefault(stream, []).append(output)
        by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        for stream, own in by_stream.items():
            if is_last := stream.request.is_finished:
                self.streams.pop(stream.request, None)
            by_loop.setdefault(stream.loop, []).append((stream, own, is_last))
        for loop, deliveries in by_loop.items():
            if not _wake(loop, deliveries):
                for stream, _, is_last in deliveries:
                    if not is_last:
                        self._abort(stream.request)


def _wake(loop: asyncio.AbstractEventLoop, deliveries: Sequence[Delivery]) -> bool:
    """Hand what is new over, in one call however many streams it is for, as each call costs the engine's thread a write
    to a socket; False where the loop has ended, and the readers with it."""
    try:
        loop.call_soon_threadsafe(_put_all, deliveries)
    except RuntimeError:
        return False
    return True


def _put_all(deliveries: Sequence[Delivery]) -> None:
    for stream, outputs, is_last in deliveries:
        stream.put(outputs, is_last)
