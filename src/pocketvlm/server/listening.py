"""The socket that a server listens on. Nothing here imports PyTorch: that it cannot be had is said at once."""

from __future__ import annotations

import errno
import os
import socket

from pocketvlm.errors import ConfigError
from pocketvlm.server.settings import ServerSettings

SEND_BUFFER = 128 * 1024  # bytes


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ConfigError: the address does not exist here, or is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
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
