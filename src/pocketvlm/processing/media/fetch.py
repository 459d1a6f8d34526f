"""http(s) URL → bytes, by the one function that every entry point uses.

A URL comes from whoever writes the request, so fetching it must not reach what only this machine can reach:

- The URL is parsed once; user names, backslashes and control characters are refused.
- The name is resolved once, every address must be public, and the connection goes to that very address.
- Redirects are not followed, and proxies from the environment are not used.
- Size and time are limited while streaming; a watchdog ends a host that sends one byte now and then.

The standard library is enough: the larger clients resolve names themselves, which is what must not happen here.
(Resolving a name has the time limit of the system's resolver.)
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, urlsplit

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_CHUNK = 65536
# Addresses in which an IPv4 address hides behind a translator (NAT64); the hidden one decides.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class _Target:
    """A parsed URL."""

    secure: bool
    host: str
    port: int
    path: str
    name: str  # for messages: without the query, which may hold a signature


def is_url(source: str) -> bool:
    """True for http: and https:, in any case."""
    return source[:8].lower().startswith(("http://", "https://"))


def has_urls(thing: object) -> bool:
    """Whether an http(s) URL stands anywhere in lists and mappings."""
    if isinstance(thing, str):
        return is_url(thing)
    if isinstance(thing, Mapping):
        return any(map(has_urls, thing.values()))
    return isinstance(thing, list | tuple) and any(map(has_urls, thing))


def is_data_url(source: str) -> bool:
    """True for data:, in any case."""
    return source[:5].lower() == "data:"


def fetch(url: str, limits: MediaLimits, hold: Callable[[int], None] = lambda _count: None) -> bytes:
    """Download a body.

    Args:
        hold: asked for the bytes of each piece, as it arrives; what it raises ends the download.

    Raises:
        MediaError: a URL that is malformed or leads to a private address, a host that does not answer in time, a status
            other than 200, an empty body, or one over `limits.max_bytes`; or nothing may be fetched.
    """
    if not limits.fetch_urls:
        raise MediaError("Nothing is fetched from other hosts here", hint="Pass the picture itself as a data: URL.")
    target = _parse(url)
    addresses = _resolve(target, limits)
    expired = threading.Event()
    try:
        with _connect(target, addresses, limits, expired) as connection:
            body = _read(connection, target, limits, hold)
    except MediaError:
        if expired.is_set():
            raise _too_slow(target, limits) from None
        raise
    except TimeoutError:
        raise _too_slow(target, limits) from None
    except ssl.SSLCertVerificationError:
        raise MediaError(f"{target.name} has a certificate that cannot be verified") from None
    except (OSError, HTTPException, ValueError):
        if expired.is_set():
            raise _too_slow(target, limits) from None
        raise MediaError(f"{target.name} could not be downloaded", hint="Check that the host is up.") from None
    if expired.is_set():
        # A body without a length looks complete when the watchdog ends it.
        raise _too_slow(target, limits)
    return body


def _too_slow(target: _Target, limits: MediaLimits) -> MediaError:
    return MediaError(
        f"{target.name} did not arrive in time ({limits.connect_seconds:g} s without an answer, "
        f"{round(limits.total_seconds, 1):g} s in all)"
    )


def _parse(url: str) -> _Target:
    try:
        # Checked before parsing: urlsplit silently drops tabs and line ends.
        if _UNSAFE.search(url):
            raise ValueError
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in ("http", "https") or "@" in parts.netloc:
            raise ValueError
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        if not _HOST.fullmatch(host) or port == 0:
            raise ValueError
    except ValueError:
        raise MediaError(
            "The URL is malformed",
            hint="Give http://host/path or https://host/path, without user name, spaces or backslashes.",
        ) from None
    secure = parts.scheme == "https"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    shown = parts.path if len(parts.path) <= 60 else parts.path[:57] + "..."
    place = (f"[{host}]" if ":" in host else host[:80]) + (f":{port}" if port else "")
    return _Target(secure, host, port or (443 if secure else 80), path, f"{parts.scheme}://{place}{shown}")


def _resolve(target: _Target, limits: MediaLimits) -> list[str]:
    """All addresses of the host, each allowed to be connected to."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise MediaError(f"The host of {target.name} is unknown", hint="Check the URL.") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    exempt = target.host.lower() in {host.lower() for host in limits.private_hosts}
    if not addresses or not (exempt or all(is_public(address) for address in addresses)):
        raise MediaError(
            f"{target.name} leads to a private address",
            hint="Only public hosts are fetched from; send the picture itself, as a data: URL.",
        )
    return addresses


def is_public(address: str) -> bool:
    """True for an IP address that belongs to the public internet, seen through embedded IPv4 addresses."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        # Tunnels (6to4, Teredo) and site-local addresses have no honest use here.
        if ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


class _PinnedConnection(HTTPConnection):
    """An HTTP connection over a socket that is already open, so that no name is resolved again."""

    def __init__(self, target: _Target, opened: socket.socket) -> None:
        super().__init__(target.host, target.port)
        self.default_port = 443 if target.secure else 80  # decides whether Host: names the port
        self.sock = opened

    def connect(self) -> None:
        raise HTTPException("no second connection")


@contextmanager
def _connect(
    target: _Target, addresses: list[str], limits: MediaLimits, expired: threading.Event
) -> Iterator[_PinnedConnection]:
    """Open a connection to the first address that answers; within the block, a watchdog limits the time in all."""
    opened = _open_socket(target, addresses, limits)
    # The watchdog's own handle: TLS takes the first one over.
    handle = opened.dup()

    def expire() -> None:
        expired.set()
        with suppress(OSError):  # the other side was faster
            handle.shutdown(socket.SHUT_RDWR)

    watchdog = threading.Timer(limits.total_seconds, expire)
    watchdog.daemon = True
    watchdog.start()
    connection = None
    try:
        if target.secure:
            opened = ssl.create_default_context().wrap_socket(opened, server_hostname=target.host)
        connection = _PinnedConnection(target, opened)
        yield connection
    finally:
        watchdog.cancel()
        watchdog.join()
        if connection is not None:
            connection.close()
        opened.close()
        handle.close()


def _open_socket(target: _Target, addresses: list[str], limits: MediaLimits) -> socket.socket:
    # Two attempts reach an IPv4 address where IPv6 is configured but dead; more would only add up time.
    failure: OSError | None = None
    families = {":" in address: address for address in reversed(addresses)}
    for address in sorted(families.values(), key=addresses.index):
        try:
            return socket.create_connection((address, target.port), timeout=limits.connect_seconds)
        except OSError as error:
            failure = error
    raise failure or OSError("no address")


def _read(connection: _PinnedConnection, target: _Target, limits: MediaLimits, hold: Callable[[int], None]) -> bytes:
    headers = {"Accept-Encoding": "identity", "User-Agent": "pocketvlm", "Connection": "close"}
    connection.request("GET", target.path, headers=headers)
    with connection.getresponse() as response:
        if 300 <= response.status < 400:
            raise MediaError(f"{target.name} redirects", hint="Redirects are not followed; give the final URL.")
        if response.status != 200:
            raise MediaError(f"{target.name} answered with status {response.status}, expected 200")
        if response.getheader("Content-Encoding", "identity").strip().lower() != "identity":
            raise MediaError(f"{target.name} answered with a compressed body, which was not asked for")
        if response.length is not None:
            limits.check_bytes(response.length, target.name)
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            hold(len(chunk))
            body += chunk
            limits.check_bytes(len(body), target.name)
        # http.client reports a body that ends early only to readers of the whole.
        if response.length:
            raise MediaError(f"{target.name} ended before its last byte", hint="Try again.")
    if not body:
        raise MediaError(f"{target.name} is empty")
    return bytes(body)
