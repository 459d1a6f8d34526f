"""The socket that a server listens on. Nothing here imports PyTorch: that it cannot be had is said at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.server.origins import is_address
from pocketvlm.server.settings import ServerSettings

logger = logging.getLogger(__name__)
SEND_BUFFER = 128 * 1024  # bytes
SELDOM_SECONDS = 10.0


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ConfigError: the address is empty, does not exist here, or is taken.
    """
    if not settings.host:  # a variable that was not set must not open the server to everybody
        raise ConfigError("host is empty", hint="127.0.0.1 is this machine alone, 0.0.0.0 is all interfaces.")
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        if not is_address(settings.host):
            found = {kind for kind, *_ in socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)}
            family = socket.AF_INET if socket.AF_INET in found else socket.AF_INET6
        sock = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
        # Connections have it too. Left to itself the system takes megabytes of what nobody reads.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return sock
    except (OSError, UnicodeError) as error:
        # The library's own text says the address once more.
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number in errno.errorcode else "no such address"
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({reason})", hint="Give another --host or --port."
        ) from None


class Seldom:
    """Tells of what goes wrong in an event loop, and of the same only once in `SELDOM_SECONDS`: where the system has no
    room for a connection, asyncio says so some thousand times a second, each time with a traceback."""

    def __init__(self) -> None:
        self._last, self._when = "", 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, now = context.get("exception"), time.monotonic()
        what = f"{context['message'][:40]} {type(error).__name__}"
        if what == self._last and now < self._when + SELDOM_SECONDS:
            return
        self._last, self._when = what, now
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            logger.error("no connection can be taken at the moment: %s", error.strerror)
        else:
            loop.default_exception_handler(context)
