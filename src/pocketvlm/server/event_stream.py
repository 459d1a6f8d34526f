"""A stream of server-sent events that ends when its client leaves or is too slow to read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pocketvlm.protocol.chat_response import to_json
from pocketvlm.server.errors import log_fault

DONE = "data: [DONE]\n\n"


def event(body: object, name: str | None = None) -> str:
    """One event with a JSON body."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {to_json(body)}\n\n"


class EventStream(Response):
    """Args:
    events: the text of each event; closed at the end, whatever ends the stream.
    send_seconds: for the client to take one of them.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], *, send_seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._send_seconds = events, send_seconds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            fault, _ = await asyncio.gather(sending, leaving, return_exceptions=True)
            if isinstance(fault, Exception) and not isinstance(fault, TimeoutError):  # a slow client is none of ours
                log_fault(fault)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for text in events:
                async with asyncio.timeout(self._send_seconds):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class NDJSON(EventStream):
    """The same for JSON objects, a line each."""

    media_type = "application/x-ndjson"


def line(body: object) -> str:
    """One line with a JSON body."""
    return f"{to_json(body)}\n"


async def left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
