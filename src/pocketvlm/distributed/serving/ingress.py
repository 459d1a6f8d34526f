"""The process in front of the replicas: who may ask, the body within our limits, its conversation, health and metrics.

It has no model, and none of PyTorch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client import generate_latest as text_of
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm.distributed.serving.conversation import conversation_key
from pocketvlm.distributed.serving.metrics import merged
from pocketvlm.distributed.serving.relay import Relay, ReplicaLostError, carried, lost, while_there
from pocketvlm.errors import DeadlineError
from pocketvlm.server.body import LARGE, read_body
from pocketvlm.server.errors import ClientLeftError, code_of, response_of
from pocketvlm.server.event_stream import left
from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.heads import Heads, cross_origin
from pocketvlm.server.keys import KeyCheck
from pocketvlm.server.metrics import HTTPMetrics
from pocketvlm.server.origins import OriginCheck
from pocketvlm.server.request_log import log_exchange, start_logging
from pocketvlm.server.settings import ServerSettings

ASKING_SECONDS = 10.0  # for all replicas to say how they are
HEALTH_SECONDS = 1.0  # for which an answer to that counts: anybody may ask
GRACE = 2.0  # seconds by which a replica tells its client first that time is over
_MOST = 100_000  # of `max_in_flight`
_SAFE = ("GET", "HEAD", "OPTIONS")
# Paths that the log and metrics name; others are clients' own.
_KNOWN = frozenset(
    ["/v1/chat/completions", "/v1/responses", "/v1/view_plan", "/tokenize", "/api/chat", "/api/generate", "/metrics"]
)


class Ingress:
    """Args:
    replicas: a handle of the deployment of `Replica`.
    values: of `ServerSettings`, those of each replica.
    most_replicas: that there may be; requests in flight are as many as all of them take.
    """

    def __init__(self, replicas: DeploymentHandle[Any], values: Mapping[str, Any], most_replicas: int) -> None:
        settings = ServerSettings(**values)
        start_logging(settings)
        self._app = front(settings, replicas, most_replicas, serve.get_replica_context().replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook for an application that needs what the constructor is given."""
        return self._app


def front(settings: ServerSettings, replicas: DeploymentHandle[Any], most_replicas: int, name: str) -> ASGIApp:
    """The application, with request ids and what scripts of other origins may see."""
    app = _without_ids(Heads(Front(settings, replicas, most_replicas, name)))
    return CORSMiddleware(app, **cross_origin(settings)) if settings.cors_origins else app


class Front:
    """Reads a request, chooses by its conversation, and passes the response on."""

    def __init__(
        self, settings: ServerSettings, replicas: DeploymentHandle[Any], most_replicas: int, name: str
    ) -> None:
        self._load = Load(replace(settings, max_in_flight=min(settings.max_in_flight * most_replicas, _MOST)))
        self._metrics = HTTPMetrics(self._load)
        self._check_key, self._check_origin = KeyCheck.of(settings), OriginCheck(settings)
        self._all, self._name = replicas, name
        self._answering = replicas.options(method_name="answer", stream=True)
        self._health, self._asked, self._asking = False, 0.0, asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return None  # no WebSocket has anything here
        path, is_read = scope["path"], scope["method"] == "GET"
        if is_read and path in ("/health", "/ready"):
            is_well = await self._is_well(path)
            said = JSONResponse({"status": "ok" if is_well else "no replica is ready"}, 200 if is_well else 503)
            return await said(scope, receive, send)
        name = path if path in _KNOWN else "(other)"
        exchange = Exchange(self._load, scope["method"], name, scope.get("pocketvlm.request_id", ""))
        exchange.put_into(scope)
        relay = Relay(self._answering, exchange, scope, send)

        async def send_here(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            await send(message)

        try:
            if is_read and path == "/metrics":
                response = await self._all_metrics(exchange, Request(scope, receive))
                await response(scope, receive, send_here)
            else:
                await self._pass(exchange, relay, Request(scope, receive))
        except Exception as error:
            exchange.error = code_of(error)
            if not exchange.status:
                await response_of(error, path)(scope, receive, send_here)
            elif relay.is_complete or not await relay.break_off(error):
                raise
        finally:
            await exchange.end()
            if exchange.error:  # the replica has counted and logged all others
                self._metrics.ended(exchange)
                log_exchange(exchange)
        return None

    async def _pass(self, exchange: Exchange, relay: Relay, request: Request) -> None:
        body, key = b"", ""
        if request.method not in _SAFE:
            self._let_in(exchange, request)
            body = await read_body(request)
            key = conversation_key(body) if len(body) < LARGE else await asyncio.to_thread(conversation_key, body)
        seconds = exchange.deadline + GRACE - time.monotonic()
        try:
            ended = await while_there(relay.run(body, key), left(request.receive), seconds)
        except ReplicaLostError:
            raise lost() from None
        if ended == "late":
            raise DeadlineError("the deadline has passed")
        if ended == "left" and not relay.is_complete:
            raise ClientLeftError

    def _let_in(self, exchange: Exchange, request: Request) -> None:
        self._check_origin(request)
        exchange.key = self._check_key(request)
        self._load.check_room()
        exchange.begin()

    async def _all_metrics(self, exchange: Exchange, request: Request) -> Response:
        """Of all replicas, and of the requests that were answered here, each with a label `replica`."""
        self._check_origin(request)
        exchange.key = self._check_key(request)
        own = [(self._name, text_of(self._metrics.registry).decode())]
        found = await self._ask_all({**carried(request.scope), "path": "/metrics", "raw_path": b"/metrics"})
        texts = [(name, body.decode()) for name, status, body in found if status == 200]
        return Response(merged([*own, *texts]), media_type=CONTENT_TYPE_LATEST)

    async def _is_well(self, path: str) -> bool:
        """Whether a replica takes requests; asked at most once in `HEALTH_SECONDS`."""
        async with self._asking:
            if time.monotonic() >= self._asked + HEALTH_SECONDS:
                scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
                nothing = {"headers": [], "query_string": b"", "root_path": "", "scheme": "http"}
                found = await self._ask_all({**scope, **nothing, "http_version": "1.1", "client": None, "server": None})
                self._health, self._asked = any(status == 200 for _, status, _ in found), time.monotonic()
        return self._health

    async def _ask_all(self, scope: dict[str, Any]) -> list[tuple[str, int, bytes]]:
        """Name, status and body of each replica's response; those that do not answer are left out."""
        with suppress(RayServeException, TimeoutError):  # there is none, or one does not answer
            asked = self._all.broadcast("whole", scope)
            found = await asked.results_async(timeout_s=ASKING_SECONDS, return_exceptions=True)
            return [one for one in found if not isinstance(one, BaseException)]
        return []


def _without_ids(app: ASGIApp) -> ASGIApp:
    """Responses without our request id: Ray's proxy, which is asked first, has given the request one and says it."""

    async def without_ids(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message["headers"] if one[0] != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, send_on)

    return without_ids


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan of an application that has nothing to start."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
