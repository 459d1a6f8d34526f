"""One connection: uvicorn's, with a limit on each kind of waiting that a client can make it do."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pocketvlm.server.heads import MAX_HEADERS
from pocketvlm.server.joined_writes import JoinedWrites
from pocketvlm.server.settings import ServerSettings

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_BODY = (
    b'{"error": {"message": "too many connections are open", "type": "server_error", "param": null, '
    b'"code": "too_many_connections"}}'
)
_BAD = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
_BAD_BODY = b'{"error": {"message": "%s", "type": "invalid_request_error", "param": null, "code": "invalid_request"}}'
_NO_HTTP = b"400 Bad Request", _BAD_BODY % b"this is no HTTP request"
_TOO_LONG = b"431 Request Header Fields Too Large", _BAD_BODY % b"the headers have more than %d bytes" % MAX_HEADERS


class Connection(H11Protocol):
    """The head of a request has to arrive in `header_seconds`, also the rest of a body that nobody wants any more; a
    client that reads nothing for `send_seconds` is cut off, or once all has been written, for the time that connections
    are kept. One that reads slowly is waited for, up to `request_seconds` from there. (Bodies have their own time, in
    `server.body`.)
    """

    settings: ServerSettings  # of the class that `connections` makes
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _completed = math.inf  # when the last response was complete, by the loop's clock
    _unread = 0  # bytes that the client had not read when a response was complete, or at the last look after that

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport = JoinedWrites(transport, self.loop)  # type: ignore[assignment]
        super().connection_made(transport)
        # asyncio does so itself only for sockets that name their protocol, which those of `socket.create_server` do
        # not. Without it the second piece of a response waits for the client to confirm the first, often for 40 ms.
        with suppress(OSError):  # a client that has left already, as macOS tells it
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.settings.max_connections:
            transport.write(_FULL % (len(_BODY), _BODY))
            transport.close()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer("_head_timer")
        else:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Say that what came is no HTTP, or too long, unless a response has begun already, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            hint = getattr(sys.exception(), "error_status_hint", 400)
            status, body = _TOO_LONG if hint == 431 else _NO_HTTP
            self.transport.write(_BAD % (status, len(body), body))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever offers another protocol (HTTP/2 as Java does, or WebSocket) is answered in this one, without a
        warning: the log is not for what every client can write into it."""

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._completed = self.loop.time()
        self._unread = self.transport.get_write_buffer_size()
        if self.transport.is_closing() and self._unread:
            self._expect_reading()

    def timeout_keep_alive_handler(self) -> None:
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if not self._unread:
            super().timeout_keep_alive_handler()
        elif self._unread < before and self._may_go_on_reading():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:  # closing would wait for the client to read it
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer("_send_timer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer("_head_timer")
        self._stop_timer("_send_timer")
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.header_seconds, self.transport.abort)

    def _expect_reading(self) -> None:
        if self._send_timer is None:
            self._look_later(self.transport.get_write_buffer_size())

    def _look_later(self, unread: int) -> None:
        self._send_timer = self.loop.call_later(self.settings.send_seconds, self._look, unread)

    def _look(self, before: int) -> None:
        """Cut the client off unless it has read something."""
        unread = self.transport.get_write_buffer_size()
        if unread < before and self._may_go_on_reading():
            self._look_later(unread)
        else:
            self.transport.abort()

    def _may_go_on_reading(self) -> bool:
        """What is left of a complete response is in no other limit: it may take as long as an answer."""
        is_under_way = self.cycle is not None and not self.cycle.response_complete
        return is_under_way or self.loop.time() - self._completed < self.settings.request_seconds

    def _stop_timer(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


def connections(settings: ServerSettings) -> type[Any]:
    """The class of a server's connections."""
    return type("Connection", (Connection,), {"settings": settings})
