"""/mcp: the tools of `pocketvlm mcp` by HTTP, within the limits of the server."""

from __future__ import annotations

from typing import Any

from pocketvlm.api.job import Job
from pocketvlm.errors import EngineError, QueueFullError
from pocketvlm.mcp_server.server import HTTPEndpoint
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.server.errors import ClientLeftError, HTTPError
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
        """A call is held to the same limits as a request of any API.

        Raises:
            QueueFullError, EngineError: there is no room for it; nobody waits for it any more.
        """
        job.limit(settings.max_answer_tokens)
        try:
            exchange_of(request).add(job)
        except HTTPError as error:
            raise QueueFullError(str(error)) from None
        except ClientLeftError:
            raise EngineError("the request of this call has ended") from None

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
    names = dict.fromkeys((*LOCAL, host, *settings.allowed_hosts))
    return tuple(form for name in names for form in (name, f"{name}:*"))
