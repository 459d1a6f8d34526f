"""Pages of other sites in a user's browser must not use a server that asks for no key.

A browser sends what any page tells it to, to this machine as well. So, where there are no keys: what changes or costs
something is refused to pages of other origins, and a server of this machine alone answers to its own names only, since
a page's name may be made to lead here (DNS rebinding). Programs send no `Origin`.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.requests import Request

from pocketvlm.server.errors import HTTPError
from pocketvlm.server.settings import ServerSettings

_SAFE = ("GET", "HEAD", "OPTIONS")


class OriginCheck:
    """Args:
    settings: with keys in them everything is let through: no page has one.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._has_keys = bool(settings.api_keys or settings.api_key_file)
        self._is_local = is_local(settings.host)
        self._names = {settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._origins = set(settings.cors_origins)

    def __call__(self, request: Request) -> None:
        """Raises: HTTPError 403."""
        if self._has_keys:
            return
        host = request.headers.get("host", "")
        if self._is_local and not self._is_own(host):
            raise HTTPError(
                403,
                f"this server is not known as {_name_of(host)[:100]!r}. Start it with --allowed-host and that name.",
                "permission_error",
                "host_not_allowed",
            )
        origin = request.headers.get("origin")
        if request.method not in _SAFE and origin is not None and not self._may_ask(origin, host):
            raise HTTPError(
                403,
                f"pages of {origin[:100]!r} may not use this server. Start it with --cors-origin and that origin.",
                "permission_error",
                "origin_not_allowed",
            )

    def _is_own(self, host: str) -> bool:
        name = _name_of(host)
        # An address stands for itself; localhost and names below it never lead elsewhere.
        return is_address(name) or name == "localhost" or name.endswith(".localhost") or name in self._names

    def _may_ask(self, origin: str, host: str) -> bool:
        if origin in self._origins or "*" in self._origins:
            return True
        scheme, separator, place = origin.partition("://")
        # The pages of programs, such as app:// and file://, come from no site; "null" may be anyone's.
        return bool(separator) and (place.lower() == host.lower() or scheme.lower() not in ("http", "https"))


def is_local(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if is_address(host):  # nobody has to be asked
        return ipaddress.ip_address(host).is_loopback
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)  # 127.1 and names of this machine too
        return all(ipaddress.ip_address(str(place[0])).is_loopback for *_, place in found)
    except (OSError, ValueError):
        return host.lower() == "localhost"


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
