"""/mcp: the tools of `pocketvlm mcp` by HTTP, within the limits of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from pocketvlm.api.job import Job
from pocketvlm.errors import EngineError, PromptError, QueueFullError
from pocketvlm.mcp_server.server import Caller, HTTPEndpoint
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.mcp_server.tools import Call
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.exchange import Exchange, exchange_of
from pocketvlm.server.service import Service, check_messages
from pocketvlm.server.settings import ServerSettings

PATH = "/mcp"
METHODS = ("POST", "DELETE")  # no GET: nothing is sent that was not asked for
LOCAL = ("127.0.0.1", "localhost", "[::1]")


class HTTPCaller(Caller):
    """A call is held to the same limits as a request of any API; errors are in words of this protocol."""

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self._service, self._exchange = service, exchange
        self.keep, self.hold = exchange.keep, exchange.lend

    @property
    def seconds(self) -> float:
        return self._exchange.deadline - time.monotonic()

    def check(self, call: Call) -> None:
        """Its text and the files that were read for it.

        Raises:
            PromptError: it has more text than a request may have, or larger files.
            QueueFullError, EngineError: there is no room for its files; nobody waits for it any more.
        """
        try:
            check_messages(call.messages, self._exchange, self._service.most_text_bytes)
        except HTTPError as error:
            raise PromptError(str(error)) from None
        with _told():
            self._exchange.hold(call.file_bytes)

    async def while_there(self, work: Coroutine[Any, Any, Job]) -> Job:
        """What `work` makes; it is cancelled when the request has ended, whose session goes on.

        Raises:
            PromptError, QueueFullError, EngineError: as `check`, of what is made of its files.
        """
        task, ending = asyncio.ensure_future(work), asyncio.create_task(self._exchange.ended.wait())
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            with _told():
                if not task.done():
                    raise ClientLeftError
                return task.result()
        finally:
            for one in (task, ending):
                one.cancel()
            await asyncio.gather(task, ending, return_exceptions=True)

    def add(self, job: Job) -> None:
        """Raises: PromptError, QueueFullError, EngineError: as `check`, of its pictures."""
        job.limit(self._service.settings.max_answer_tokens)
        with _told():
            self._exchange.add(job)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise (QueueFullError if error.status == 429 else PromptError)(str(error)) from None
    except ClientLeftError:
        raise EngineError("the request of this call has ended") from None


def agents_endpoint(service: Service) -> HTTPEndpoint:
    """The endpoint of a service.

    Raises:
        ConfigError: one of `mcp_roots` is no folder.
    """
    settings = service.settings

    return HTTPEndpoint(
        service.vlm,
        Sources(settings.mcp_roots, settings.media_limits, settings.max_body_bytes),
        hosts=allowed_hosts(settings),
        origins=settings.cors_origins,
        max_body_bytes=settings.max_body_bytes,
        caller_of=lambda request: HTTPCaller(service, exchange_of(request)),
    )


def allowed_hosts(settings: ServerSettings) -> tuple[str, ...]:
    """Names by which the server may be called: this machine's, that of its address, and those that were named."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    names = dict.fromkeys((*LOCAL, host, *settings.allowed_hosts))
    return tuple(form for name in names for form in (name, f"{name}:*"))
