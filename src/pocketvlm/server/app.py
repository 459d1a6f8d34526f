"""The application: routes of every API, each behind the key, with request ids, health and metrics."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.server.chat import chat_completions
from pocketvlm.server.errors import HTTPError, response_of
from pocketvlm.server.keys import KeyCheck
from pocketvlm.server.page import add_page
from pocketvlm.server.service import Service
from pocketvlm.server.settings import ServerSettings
from pocketvlm.server.view_plan import view_plan

Handler = Callable[[Service, Request], Awaitable[Response]]


async def models(service: Service, _request: Request) -> Response:
    """GET /v1/models."""
    card = {"object": "model", "created": service.began, "owned_by": "pocketvlm", "pocketvlm": service.about()}
    cards = [{"id": name, **card} for name in service.names]
    return JSONResponse({"object": "list", "data": cards})


async def metrics(service: Service, _request: Request) -> Response:
    """GET /metrics, as Prometheus reads it."""
    return Response(generate_latest(service.vlm.engine.engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


# All of them want a key, where there are keys.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("GET", "/v1/models", models),
    ("POST", "/v1/view_plan", view_plan),
    ("GET", "/metrics", metrics),
)


def create_app(vlm: AsyncVLM, settings: ServerSettings, *, is_draining: Callable[[], bool] = lambda: False) -> FastAPI:
    """The ASGI application of one model; it does not close it.

    Args:
        is_draining: whether the server has been asked to stop: it is no longer ready then, and takes no more requests.
    """
    service = Service(vlm, settings, settings.served_model_names or (vlm.vlm.name,))
    check_key = KeyCheck(settings.api_keys)
    app = FastAPI(title="pocketvlm", docs_url="/docs" if settings.docs else None, redoc_url=None, openapi_url=None)

    def guarded(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """With a key, while the server takes requests; every error becomes a response."""

        async def answer(request: Request) -> Response:
            try:
                check_key(request)
                if is_draining():
                    raise HTTPError(503, "the server is about to stop", "server_error", "shutting_down")
                return await handler(service, request)
            except Exception as error:
                return response_of(error)

        return answer

    async def health(_request: Request) -> Response:
        alive = vlm.engine.is_alive or is_draining()
        return JSONResponse({"status": "ok" if alive else "the engine has ended"}, 200 if alive else 503)

    async def ready(_request: Request) -> Response:
        is_ready = vlm.engine.is_alive and not is_draining()
        return JSONResponse({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)

    for method, path, handler in ROUTES:
        app.router.add_route(path, guarded(handler), methods=[method])
    app.router.add_route("/health", health, methods=["GET"])
    app.router.add_route("/ready", ready, methods=["GET"])
    if settings.page:
        add_page(app.router)

    async def unknown(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        what = "there is nothing at" if status == 404 else f"{request.method} is not allowed at"
        return response_of(HTTPError(status, f"{what} {request.url.path[:100]}", code="unknown_url"))

    app.add_exception_handler(404, unknown)
    app.add_exception_handler(405, unknown)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(RequestIds)
    return app


class RequestIds:
    """Every response has an `x-request-id`: the client's own, if it is short and plain, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        plain = 0 < len(given) <= 64 and all(33 <= byte < 127 for byte in given)
        name = given if plain else uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        return await self.app(scope, receive, send_with_id)
