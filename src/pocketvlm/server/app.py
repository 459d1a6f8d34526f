"""The application: routes of every API, each behind the key, with request ids, health and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocketvlm.api.adapters import AdapterLimits
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.server.adapters import load_lora_adapter, unload_lora_adapter
from pocketvlm.server.chat import chat_completions
from pocketvlm.server.errors import HTTPError, response_of
from pocketvlm.server.guard import Guard, Handler
from pocketvlm.server.heads import Heads, cross_origin
from pocketvlm.server.keys import KeyCheck
from pocketvlm.server.ollama import NOT_OFFERED, chat, generate, is_running, not_offered
from pocketvlm.server.ollama_models import ps, show, tags, version
from pocketvlm.server.openapi import openapi
from pocketvlm.server.page import add_page
from pocketvlm.server.page_previews import pages
from pocketvlm.server.responses import responses
from pocketvlm.server.service import Service
from pocketvlm.server.settings import ServerSettings
from pocketvlm.server.tokens import detokenize, model, models, tokenize
from pocketvlm.server.tracing import Tracing
from pocketvlm.server.view_plan import view_plan

# Path → the option that it needs.
OFF_BY_DEFAULT = {
    "/mcp": "--mcp",
    "/openapi.json": "--docs",
    "/v1/load_lora_adapter": "--adapter-root",
    "/v1/unload_lora_adapter": "--adapter-root",
}
ADAPTER_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/load_lora_adapter", load_lora_adapter),
    ("POST", "/v1/unload_lora_adapter", unload_lora_adapter),
)


async def description(service: Service, _request: Request) -> Response:
    """GET /openapi.json, where the settings have it."""
    return JSONResponse(openapi(service.all_names, adapters=bool(service.settings.adapter_roots)))


# All of them want a key, where there are keys.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/responses", responses),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{model:path}", model),
    ("POST", "/v1/view_plan", view_plan),
    ("POST", "/v1/pages", pages),
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("GET", "/api/tags", tags),
    ("POST", "/api/show", show),
    ("GET", "/api/ps", ps),
    ("GET", "/api/version", version),
    *((method, path, not_offered) for method, path in NOT_OFFERED),
)


def create_app(
    vlm: AsyncVLM,
    settings: ServerSettings,
    *,
    is_draining: Callable[[], bool] = lambda: False,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The ASGI application of one model; it does not close it.

    Args:
        is_draining: whether the server has been asked to stop: it is no longer ready then, and takes no more requests.
        tracing: takes a span of each request.
    """
    service = Service(vlm, settings, settings.served_model_names or (vlm.vlm.name,), tracing=tracing)
    vlm.vlm.adapters.limits = AdapterLimits(settings.max_adapters, settings.adapter_memory)
    guard = Guard(service, KeyCheck.of(settings), is_draining)
    app = FastAPI(title="pocketvlm", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.guard = guard  # for whoever runs the application and counts what it does
    if settings.mcp:
        from pocketvlm.server import agents  # it needs an extra

        endpoint = agents.agents_endpoint(service)
        app.router.lifespan_context = lambda _app: endpoint.running()
        for_agents: Any = guard.application(endpoint.application, agents.PATH)
        app.router.add_route(agents.PATH, for_agents, methods=list(agents.METHODS))

    async def health(_request: Request) -> Response:
        alive = vlm.engine.is_alive or is_draining()
        return JSONResponse({"status": "ok" if alive else "the engine has ended"}, 200 if alive else 503)

    async def ready(_request: Request) -> Response:
        is_ready = vlm.engine.is_alive and not is_draining()
        return JSONResponse({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)

    described = (("GET", "/openapi.json", description),) if settings.docs else ()
    loading = ADAPTER_ROUTES if settings.adapter_roots else ()
    for method, path, handler in (*ROUTES, ("GET", "/metrics", guard.metrics.respond), *described, *loading):
        guarded: Any = guard.route(handler, path)  # an application, which Starlette takes too
        app.router.add_route(path, guarded, methods=[method])
    app.router.add_route("/health", health, methods=["GET"])
    app.router.add_route("/ready", ready, methods=["GET"])
    # Ollama answers both with this; GET is the page, where there is one.
    app.router.add_route("/", is_running, methods=["HEAD"] if settings.page else ["GET", "HEAD"])
    if settings.page:
        add_page(app.router)

    async def unknown(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        path, allowed = request.url.path, (getattr(error, "headers", None) or {}).get("Allow")
        if allowed:
            message = f"{request.method[:20]} is not allowed at {path[:100]}. Use {allowed}."
        else:
            hint = f". Start the server with {OFF_BY_DEFAULT[path]}." if path in OFF_BY_DEFAULT else ""
            message = f"there is nothing at {path[:100]}{hint}"
        response = response_of(HTTPError(status, message, code="unknown_url"), path)
        if allowed:
            response.headers["Allow"] = allowed
        return response

    app.add_exception_handler(404, unknown)
    app.add_exception_handler(405, unknown)
    app.add_middleware(Heads)
    if settings.cors_origins:  # around all else, or scripts could not read what is refused for its head
        app.add_middleware(CORSMiddleware, **cross_origin(settings))
    return app
