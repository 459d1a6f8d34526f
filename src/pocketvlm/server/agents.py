"""/mcp: the tools of `pocketvlm mcp` by HTTP, within the limits of the server."""

from __future__ import annotations

from typing import Any

from pocketvlm.api.job import Job
from pocketvlm.errors import EngineError, PromptError, QueueFullError
from pocketvlm.mcp_server.server import CallLimits, HTTPEndpoint
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.mcp_server.tools import Call
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service, check_messages
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

    def on_call(request: Any, call: Call) -> None:
        """A call has no more text than a request of any API.

        Raises:
            PromptError: it has more.
        """
        try:
            check_messages(call.messages, exchange_of(request), service.most_text_bytes)
        except HTTPError as error:
            raise PromptError(str(error)) from None

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
        limits=CallLimits(on_call, on_job),
    )


def allowed_hosts(settings: ServerSettings) -> tuple[str, ...]:
    """Names by which the server may be called: this machine's, that of its address, and those that were named."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    names = dict.fromkeys((*LOCAL, host, *settings.allowed_hosts))
    return tuple(form for name in names for form in (name, f"{name}:*"))
