"""/mcp: the tools of `pocketvlm mcp` by HTTP, within the limits of the server."""

from __future__ import annotations

from typing import Any

from pocketvlm.api.job import Job
from pocketvlm.mcp_server.server import HTTPEndpoint
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service
from pocketvlm.server.settings import ServerSettings

PATH = "/mcp"
METHODS = ("POST", "DELETE")  # no GET: nothing is sent that was not asked for
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def agents_endpoint(service: Service) -> HTTPEndpoint:
    """The endpoint of a service.

    Raises:
        ConfigError: one of `mcp_roots` is no folder.
    """
    settings = service.settings

    def on_job(request: Any, job: Job) -> None:
        """What a call is counted as: the same as a request of any API."""
        exchange = exchange_of(request, settings)
        job.request.deadline = exchange.deadline
        exchange.jobs.append(job)
        if job.request.patches is not None:
            exchange.hold(job.request.patches.nbytes)

    return HTTPEndpoint(
        service.vlm,
        Sources(settings.mcp_roots, settings.media_limits),
        hosts=allowed_hosts(settings),
        origins=settings.cors_origins,
        max_body_bytes=settings.max_body_bytes,
        on_job=on_job,
    )


def allowed_hosts(settings: ServerSettings) -> tuple[str, ...]:
    """Names by which the server may be called: this machine's, that of its address, and those that were named."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    names = dict.fromkeys((*LOCAL, host, *settings.mcp_hosts))
    return tuple(form for name in names for form in (name, f"{name}:*"))
