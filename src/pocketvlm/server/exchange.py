"""One request from its arrival to the last byte of its response: what it holds, what came of it, and how much of all
that the server has room for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.types import Scope

from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.settings import ServerSettings

if TYPE_CHECKING:
    from pocketvlm.api.job import Job
    from pocketvlm.server.keys import Key

_PLACE = "pocketvlm.exchange"


@dataclass(eq=False)
class Load:
    """What all requests together hold.

    Attributes:
        in_flight: requests whose body has arrived and whose response has not been sent.
        held_bytes: of bodies, as far as they have arrived, and of what was downloaded and made for them.
        lock: of `held_bytes`, which threads count as well.
    """

    settings: ServerSettings
    in_flight: int = 0
    held_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check_room(self) -> None:
        """`HTTPError` 429 where as many are in flight as may."""
        if self.in_flight >= self.settings.max_in_flight:
            raise HTTPError(
                429, f"{self.in_flight} requests are in flight. Try again later.", "rate_limit_error", "queue_full"
            )


@dataclass(eq=False)
class Exchange:
    """One request and its response.

    Attributes:
        arrived: `time.monotonic()`.
        key: whose it is; None without keys.
        held_bytes: its part of those of all.
        keepers: threads that may still hold what it brought, also after its end.
        has_begun: it has a place among those of its key.
        is_admitted: it counts among those in flight.
        jobs: what the model was asked for.
        streams: what its answers are read from; closed at its end, also where nobody has begun to read them.
        status: of the response; 0 before it.
        error: the code of the error that the response is; empty where it is none.
        ended: set once nothing can be asked for it any more.
        images: pictures and videos that it is about.
        question: what the log may show, where content is logged.
        traceparent: the span of whoever asks, as the header of that name has it.
        tokens_elsewhere: of prompts and answers, where another process has answered it.
    """

    load: Load
    method: str
    path: str
    request_id: str = ""
    arrived: float = field(default_factory=time.monotonic)
    key: Key | None = None
    held_bytes: int = 0
    keepers: int = 0
    has_begun: bool = False
    is_admitted: bool = False
    jobs: list[Job] = field(default_factory=list)
    streams: list[AsyncGenerator[Any, None]] = field(default_factory=list)
    status: int = 0
    error: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    images: int = 0
    question: str = ""
    traceparent: str = ""
    tokens_elsewhere: int = 0

    @property
    def settings(self) -> ServerSettings:
        return self.load.settings

    @property
    def has_ended(self) -> bool:
        return self.ended.is_set()

    @property
    def counts(self) -> bool:
        """Whether it takes one of the places of its key and of the server: what has no body does not."""
        return self.method not in ("GET", "HEAD", "OPTIONS")

    @property
    def logged_status(self) -> int:
        """Of the response; 499 where nobody was there to take one."""
        return self.status or 499

    @property
    def deadline(self) -> float:
        """`time.monotonic()` at which it is given up."""
        return self.arrived + self.settings.request_seconds

    def begin(self) -> None:
        """Take a place among the requests of its key; `HTTPError` 429 where there is none."""
        if self.key is not None:
            self.key.begin()
        self.has_begun = True

    def hold(self, count: int) -> None:
        """Count bytes that are kept until the response has been sent; safe in any thread.

        Raises:
            HTTPError: 429, there is no room for them; 400, there never will be.
            ClientLeftError: the request has ended.
        """
        most = self.settings.max_held_bytes
        if self.has_ended:
            raise ClientLeftError
        if self.held_bytes + count > most:
            raise HTTPError(400, f"the request and its media take more than {most} bytes", code="invalid_media")
        with self.load.lock:
            if self.load.held_bytes + count > most:
                raise HTTPError(
                    429, "the bodies of other requests take all memory there is. Try again later.", "rate_limit_error",
                    "queue_full",
                )  # fmt: skip
            self.load.held_bytes += count
            self.held_bytes += count

    def lend(self, count: int) -> Callable[[], None]:
        """Count bytes until the result is called, both in any thread; errors as `hold`. A thread that takes some is one
        of its keepers, see `keep`."""
        self.hold(count)
        return partial(self._give_back, count)

    def _give_back(self, count: int) -> None:
        with self.load.lock:
            self.load.held_bytes -= count
            self.held_bytes -= count

    def keep(self) -> Callable[[], None]:
        """What it holds counts until the result is called, from any thread, even if the request ends before: a thread
        cannot be cancelled."""
        loop = asyncio.get_running_loop()
        self.keepers += 1

        def let_go() -> None:
            self.keepers -= 1
            self._release()

        def in_loop() -> None:
            with suppress(RuntimeError):  # the loop has ended, and whatever was counted with it
                loop.call_soon_threadsafe(let_go)

        return in_loop

    def _release(self) -> None:
        if self.has_ended and not self.keepers:
            with self.load.lock:
                self.load.held_bytes -= self.held_bytes
                self.held_bytes = 0

    def admit(self) -> None:
        """Its body has arrived; `HTTPError` 429 where too many are in flight."""
        if not self.is_admitted:
            self.load.check_room()
            self.load.in_flight += 1
            self.is_admitted = True

    def add(self, job: Job) -> None:
        """Count a job as its own: it has to end in the time of the request, and its pictures are held.

        Raises:
            HTTPError: there is no room for its pictures, as `hold` says it.
            ClientLeftError: the request ended while the job was prepared.
        """
        if self.has_ended:
            raise ClientLeftError
        job.request.deadline = self.deadline
        self.jobs.append(job)
        if job.request.patches is not None:
            self.hold(job.request.patches.nbytes)

    async def end(self) -> None:
        """Nothing of it runs on, and it holds nothing any more but what a thread has not let go of."""
        if self.has_ended:
            return
        self.ended.set()
        if self.key is not None and self.has_begun:
            self.key.end(self.prompt_tokens + self.answer_tokens + self.tokens_elsewhere)
        self._release()
        self.load.in_flight -= self.is_admitted
        for job in self.jobs:
            if not job.is_done:  # the engine gives it up before its next step, whoever still reads it
                job.request.deadline = time.monotonic()
        for stream in self.streams:
            await stream.aclose()

    @property
    def prompt_tokens(self) -> int:
        return sum(job.request.prompt_tokens for job in self.jobs)

    @property
    def answer_tokens(self) -> int:
        return sum(len(choice.token_ids) for job in self.jobs for choice in job.choices)

    @property
    def finish_reasons(self) -> list[str]:
        """Of its answers; "abort" of those that were given up."""
        return [choice.finish_reason or "abort" for job in self.jobs for choice in job.choices]

    def put_into(self, scope: Scope) -> None:
        """`exchange_of` finds it there."""
        scope[_PLACE] = self


def exchange_of(request: Request) -> Exchange:
    """That of a request which has come through the guard, as all of the table of routes do."""
    exchange: Exchange = request.scope[_PLACE]
    return exchange
