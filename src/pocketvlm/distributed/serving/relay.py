"""One request on its way to a replica and its response on the way back; to another one if the first has ended.

A request may be sent again as long as no piece of its answer has gone to the client: answers have no effects. After
that its loss is said in the form of the API.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayActorError, RaySystemError, TaskCancelledError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle
from starlette.types import Scope, Send

from pocketvlm.distributed.serving.replica import TOKENS
from pocketvlm.server.errors import HTTPError, response_of
from pocketvlm.server.event_stream import DONE, event
from pocketvlm.server.exchange import Exchange

ATTEMPTS = 3
# What the replica's application is told of a request: plain values, which travel.
_CARRIED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
_OURS = (b"x-request-id", b"date", b"server")  # headers that are added here
_RESPONSES = "/v1/responses"
_GONE = (RayActorError, RaySystemError, WorkerCrashedError, ReplicaUnavailableError, TaskCancelledError)


class ReplicaLostError(Exception):
    """The replica has ended, or takes no requests."""


def carried(scope: Scope) -> dict[str, Any]:
    """What of a request travels to a replica, its id among the headers."""
    found = {name: scope[name] for name in _CARRIED if name in scope}
    others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    request_id = scope.get("pocketvlm.request_id", "").encode()
    client, server = scope.get("client"), scope.get("server")
    return {
        **found,
        "headers": [*others, (b"x-request-id", request_id)],
        "client": tuple(client) if client else None,
        "server": tuple(server) if server else None,
    }


class Relay:
    """Args:
    replicas: a streaming handle of `Replica.answer`.
    exchange: notes the status that the client is told.
    """

    def __init__(self, replicas: DeploymentHandle[Any], exchange: Exchange, scope: Scope, send: Send) -> None:
        self._replicas, self._exchange, self._scope, self._send = replicas, exchange, scope, send
        self._start: dict[str, Any] | None = None  # held back until the body begins
        self._kind, self._events = b"", 0
        self.is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether the client has been told anything."""
        return self._exchange.status != 0

    async def run(self, body: bytes, key: str) -> None:
        """Send the request and pass its response on.

        Raises:
            HTTPError: 429, all replicas are full; 503, there is none, or as many as `ATTEMPTS` have ended meanwhile.
            ReplicaLostError: it ended after the answer had begun.
        """
        handle = self._replicas.options(session_id=key) if key else self._replicas
        for attempt in range(ATTEMPTS):
            try:
                await self._attempt(handle, body, attempt)
                return
            except ReplicaLostError:
                if self.has_begun:
                    raise
                self._start = None
        raise HTTPError(503, "the replicas that were to answer have ended. Try again.", "server_error", "unavailable")

    async def _attempt(self, handle: DeploymentHandle[Any], body: bytes, attempt: int) -> None:
        pieces: Any = handle.remote(carried(self._scope), body, attempt=attempt)
        is_over = False
        try:
            async for messages in pieces:
                for message in messages:
                    await self._take(message, is_last=attempt == ATTEMPTS - 1)
            is_over = True
        except BackPressureError:
            raise HTTPError(429, "all replicas are full. Try again later.", "rate_limit_error", "queue_full") from None
        except DeploymentUnavailableError:
            raise HTTPError(503, "no replica can be started", "server_error", "unavailable") from None
        except (*_GONE, RequestCancelledError) as error:
            if not self.is_complete:  # it may have gone once its work was done
                raise ReplicaLostError from error
        finally:
            if not is_over:
                pieces.cancel()
        if not self.is_complete:
            raise ReplicaLostError

    async def _take(self, message: dict[str, Any], *, is_last: bool) -> None:
        if message["type"] == TOKENS:
            self._exchange.tokens_elsewhere = message["tokens"]
        elif message["type"] == "http.response.start":
            if message["status"] == 503 and not is_last:  # the replica is about to end; another may not be
                raise ReplicaLostError
            headers = [(name, value) for name, value in message["headers"] if name not in _OURS]
            self._kind = dict(headers).get(b"content-type", b"")
            self._start = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            if self._start is not None:
                start, self._start = self._start, None
                self._exchange.status = start["status"]
                await self._send(start)
            self._events += message.get("body", b"").count(b"event: ")
            await self._send(message)
            self.is_complete = not message.get("more_body", False)

    async def break_off(self, error: Exception) -> bool:
        """Say in a stream that has begun that the rest is lost; returns False where its form has no way to say so."""
        text = bytes(response_of(error, self._scope["path"]).body).decode()
        if self._kind.startswith(b"application/x-ndjson"):
            said = f"{text}\n"
        elif not self._kind.startswith(b"text/event-stream"):
            return False
        elif self._scope["path"] == _RESPONSES:
            lost = {"type": "error", "code": "unavailable", "message": str(error), "param": None}
            said = event({**lost, "sequence_number": self._events}, "error")
        else:
            said = f"data: {text}\n\n{DONE}"
        await self._send({"type": "http.response.body", "body": said.encode(), "more_body": False})
        self.is_complete = True
        return True


def lost() -> HTTPError:
    """What a client is told whose answer had begun."""
    return HTTPError(503, "the replica that wrote this answer has ended. Ask again.", "server_error", "unavailable")


async def while_there(work: Any, gone: Any, seconds: float) -> str:
    """Run `work` until it is done (""), the client has left ("left") or time is over ("late"), and cancel the rest.

    Raises: what `work` raises.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((task, leaving), timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return ""
        return "left" if leaving.done() else "late"
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)
