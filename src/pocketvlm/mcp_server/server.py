"""A server of the Model Context Protocol around one model: over stdio, or as an application for HTTP."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams
from sse_starlette.sse import AppStatus

import pocketvlm
from pocketvlm.api.answers import Answer
from pocketvlm.api.async_vlm import AsyncVLM, Keep
from pocketvlm.api.job import Job
from pocketvlm.errors import DeadlineError, EngineError, PocketVLMError
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.mcp_server.tools import TOOLS, Call, failed, listed, read_call, result_of
from pocketvlm.processing.media_budget import Hold

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)
INSTRUCTIONS = (
    "Looks at pictures and videos on this machine with a small vision-language model. Ask look one question at a time, "
    "use read for the whole text of a picture, and extract for data in a form of your own."
)
PROGRESS_SECONDS = 0.5  # between two notes of how far an answer has come
SESSION_SECONDS = 600.0  # that nobody uses, after which a session over HTTP ends
MAX_SESSIONS = 256
_PLACE = re.compile(r"^messages\[\d+\](\.content\[\d+\])?: ")  # which the agent has never seen


class Caller:
    """Whoever makes a call, and what the call is held to: nothing more over stdio."""

    keep: Keep | None = None  # this and the next of `AsyncVLM.prepare`
    hold: Hold | None = None

    @property
    def seconds(self) -> float | None:
        """That are left for the call."""
        return None

    def check(self, call: Call) -> None:
        """Raise for a call of which nothing may be made."""

    async def while_there(self, work: Coroutine[Any, Any, Job]) -> Job:
        """What `work` makes, if somebody waits for it."""
        return await work

    def add(self, job: Job) -> None:
        """Raise for what was made of a call and may not run."""


def make_server(
    vlm: AsyncVLM, sources: Sources, caller_of: Callable[[Any], Caller] = lambda _request: Caller()
) -> Server[Any]:
    """A server that answers calls of `TOOLS` with the model; it does not close it.

    Args:
        caller_of: gets the HTTP request of a call, None over stdio.
    """

    async def list_tools(_context: ServerRequestContext, _params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=list(listed()))

    async def call_tool(context: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in TOOLS:
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name[:100]!r}, but {', '.join(TOOLS)}")
        try:
            caller = caller_of(context.request)
            async with asyncio.timeout(caller.seconds):
                call = await asyncio.to_thread(read_call, params.name, params.arguments, sources.open_all)
                caller.check(call)
                work = vlm.prepare(call.messages, keep=caller.keep, hold=caller.hold, **call.options)
                job = await caller.while_there(work)
            caller.add(job)
            return result_of(call, await _answer(vlm, context, call, job))
        except TimeoutError:
            return failed(str(DeadlineError("the deadline has passed")))
        except (PocketVLMError, EngineError) as error:
            return failed(_PLACE.sub("", str(error)))
        except Exception as error:  # messages of other libraries are not for agents
            logger.error("a call failed", exc_info=error)
            return failed(f"this call failed inside pocketvlm ({type(error).__name__})")

    return Server(
        "pocketvlm",
        version=pocketvlm.__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _answer(vlm: AsyncVLM, context: ServerRequestContext, call: Call, job: Job) -> Answer:
    """The answer to a call, given up when the call is cancelled; tells how far it has come."""
    told = time.monotonic()
    async with aclosing(vlm.run(job)) as deltas:
        async for _ in deltas:
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                tokens = len(job.choices[0].token_ids)
                await context.session.report_progress(tokens, call.options["max_tokens"], f"{tokens} tokens")
    return job.answer()


async def serve_stdio(vlm: AsyncVLM, sources: Sources) -> None:
    """Serve the client at stdin and stdout until it leaves. Meanwhile whatever else is printed goes to stderr."""
    server = make_server(vlm, sources)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


class HTTPEndpoint:
    """The same by streamable HTTP.

    Args:
        hosts: values of the header Host that are answered (`name`, or `name:*` for any port): a page of another
            site, whose name was made to lead here, has its own.
        origins: of pages that may call it.
        max_body_bytes: largest body of a request.

    Attributes:
        application: answers while `running` is under way.
    """

    def __init__(
        self,
        vlm: AsyncVLM,
        sources: Sources,
        *,
        hosts: tuple[str, ...],
        origins: tuple[str, ...],
        max_body_bytes: int,
        caller_of: Callable[[Any], Caller],
    ) -> None:
        self._manager = StreamableHTTPSessionManager(
            make_server(vlm, sources, caller_of),
            security_settings=TransportSecuritySettings(allowed_hosts=list(hosts), allowed_origins=list(origins)),
            session_idle_timeout=SESSION_SECONDS,
            max_request_body_size=max_body_bytes,
            max_sessions=MAX_SESSIONS,
        )
        self.application: ASGIApp = self._manager.handle_request

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        # Its streams would end within half a second of a signal. They are ours to end, when the time to drain is over.
        AppStatus.enable_automatic_graceful_drain = False
        async with self._manager.run():
            yield
