"""What every request goes through, for every API: key, capacity, handler, errors, metrics and the log.

A handler gets all of this by being in the table of routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm.server.body import read_body
from pocketvlm.server.errors import HTTPError, code_of, response_of
from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.keys import KeyCheck
from pocketvlm.server.metrics import HTTPMetrics
from pocketvlm.server.origins import OriginCheck
from pocketvlm.server.request_log import log_exchange
from pocketvlm.server.service import Service

Handler = Callable[[Service, Request], Awaitable[Response]]
logger = logging.getLogger(__name__)


class Guard:
    """Args:
    is_draining: whether the server has been asked to stop.
    """

    def __init__(self, service: Service, check_key: KeyCheck, is_draining: Callable[[], bool]) -> None:
        self.service, self.load = service, Load(service.settings)
        self.metrics = HTTPMetrics(self.load)
        self._check_key, self.is_draining = check_key, is_draining
        self._check_origin = OriginCheck(service.settings)

    def route(self, handler: Handler, path: str) -> ASGIApp:
        """The application of one route; every error becomes a response."""

        async def respond(scope: Scope, receive: Receive, send: Send) -> Response:
            return await handler(self.service, Request(scope, receive, send))

        return _Guarded(self, path, respond)

    def application(self, app: ASGIApp, path: str) -> ASGIApp:
        """The same around an application that writes responses itself. It gets its body whole, read within the limits
        of the server."""

        async def respond(scope: Scope, receive: Receive, send: Send) -> ASGIApp:
            return _with_body(app, await read_body(Request(scope, receive, send)))

        return _Guarded(self, path, respond)

    def let_in(self, exchange: Exchange, request: Request) -> None:
        """Raise `HTTPError` for an unknown key, a foreign origin or a full server, before the body is read."""
        self._check_origin(request)
        exchange.key = self._check_key(request)
        if self.is_draining():
            raise _stopping()
        if not self.service.vlm.engine.is_alive:
            raise HTTPError(503, "the engine has ended", "server_error", "engine_ended")
        if exchange.counts:
            self.load.check_room()
            exchange.begin()

    def trace(self, exchange: Exchange) -> None:
        """Export the spans of an exchange that has ended, if tracing is on."""
        if self.service.tracing is None:
            return
        try:
            self.service.tracing.ended(exchange)
        except Exception as error:  # of another library, and no reason to break the client's connection
            logger.error("the trace of a request was lost", exc_info=error)


class _Guarded:
    """One route. (An object, because Starlette takes a function for a handler.)"""

    def __init__(self, guard: Guard, path: str, respond: Callable[[Scope, Receive, Send], Awaitable[ASGIApp]]) -> None:
        self._guard, self._path, self._respond = guard, path, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._guard.load, scope["method"], self._path, scope.get("pocketvlm.request_id", ""))
        exchange.traceparent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        exchange.put_into(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            await send(message)

        try:
            try:
                self._guard.let_in(exchange, Request(scope, receive, send))
                response = await self._respond(scope, receive, send)
                await response(scope, receive, send_and_note)
            except Exception as error:  # of the application of another library, too
                if exchange.status:  # it cannot be told any more
                    raise
                exchange.error = code_of(error)
                await response_of(error, self._path)(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if not self._guard.is_draining():
                raise
            # The time to drain is over. Nothing follows in this task, so that it may end as if it had not been told to.
            if not exchange.status:
                await response_of(_stopping(), self._path)(scope, receive, send_and_note)
        finally:
            await exchange.end()
            self._guard.metrics.ended(exchange)
            log_exchange(exchange)
            self._guard.trace(exchange)


def _stopping() -> HTTPError:
    return HTTPError(503, "the server is about to stop", "server_error", "shutting_down")


def _with_body(app: ASGIApp, body: bytes) -> ASGIApp:
    """An application that is given a body which has been read, and then what else its client does."""

    async def with_body(scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await app(scope, replay, send)

    return with_body
