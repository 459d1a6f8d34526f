"""Requests to an endpoint: POST and GET with a key, answers that are bounded in size and time.

Written on the standard library: one request and one answer need no client library. Redirects are not followed, since
they would carry the key to another host.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from pocketvlm.errors import ConfigError

MAX_BODY = 16 * 2**20
_LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


class UnreachableError(Exception):
    """No answer came, or not all of one; another attempt may have more luck."""


class RefusedError(Exception):
    """The endpoint answered with another status than 200.

    Attributes:
        status: of HTTP.
        said: what it said, in at most 200 harmless characters with a colon before them; empty where it said nothing.
        retry_after: seconds that it asked for, or None.
    """

    def __init__(self, status: int, said: str, retry_after: float | None) -> None:
        super().__init__(f"status {status}{said}")
        self.status, self.said, self.retry_after = status, said, retry_after


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _ReadsRefusals:
    """A connection on which a server may answer before it has the whole body, as it does where that is too large."""

    _is_refused = False

    def send(self, data: Any) -> None:
        if self._is_refused:
            return
        try:
            super().send(data)  # type: ignore[misc]
        except (BrokenPipeError, ConnectionResetError):
            self._is_refused = True  # the response says why; where there is none, reading it fails


class _Connection(_ReadsRefusals, HTTPConnection):
    pass


class _SecureConnection(_ReadsRefusals, HTTPSConnection):
    pass


class _HTTP(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _HTTPS(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req, context=self._context)  # type: ignore[attr-defined]


def check_address(url: str, api_key: str = "") -> None:
    """Refuse what no request can be sent to, or with.

    Raises:
        ConfigError: `url` is no plain address up to and with the version, or the key cannot stand in a header.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine or parts.username or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ConfigError("the endpoint is not a plain http(s) URL", hint="Example: http://127.0.0.1:8000/v1")
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("the API key holds characters that no header can carry")


@contextmanager
def opened(url: str, body: bytes | None = None, *, api_key: str = "", timeout: float) -> Iterator[Any]:
    """The response to one request, which is closed afterwards.

    Args:
        url: all of it, with the path.
        body: JSON to POST; GET without one.
        timeout: seconds of silence that are borne.

    Raises:
        RefusedError: another status than 200.
        UnreachableError: no answer.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "pocketvlm"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    request = Request(url, body, headers, method="GET" if body is None else "POST")
    try:
        with _opener(url).open(request, timeout=timeout) as response:
            yield response
    except HTTPError as error:
        with error:
            said = _said(error, time.monotonic() + timeout)
        raise RefusedError(error.code, said, _seconds(error.headers.get("Retry-After"))) from None
    except URLError as error:
        raise UnreachableError(_network_fault(error.reason)) from None
    except (OSError, HTTPException) as error:
        raise UnreachableError(_network_fault(error)) from None


def read_all(response: Any, deadline: float) -> bytes:
    """The body of a response.

    Raises:
        UnreachableError: it is too long, ends too early, or has not come by `deadline` (`time.monotonic()`).
    """
    body = bytearray()
    while chunk := response.read1(2**16):
        body += chunk
        if len(body) > MAX_BODY:
            raise UnreachableError(f"the answer has more than {MAX_BODY} bytes")
        if time.monotonic() > deadline:
            raise UnreachableError("timed out")
    if response.length:  # http.client reports a body that ends early only to readers of the whole
        raise UnreachableError("the answer ended before its last byte")
    return bytes(body)


def _opener(url: str) -> OpenerDirector:
    # Proxies are those of the environment, but the machine itself is never reached through one.
    own = [ProxyHandler({})] if urlsplit(url).hostname in _LOCAL_HOSTS else []
    return build_opener(_NoRedirects, _HTTP, _HTTPS, *own)


def message_of(found: Any) -> str:
    """What the body of an error says, in at most 200 harmless characters, with a colon before it."""
    try:
        found = found.get("error", found)
        text = found if isinstance(found, str) else found.get("message") or found.get("detail")
    except AttributeError:
        return ""
    text = "".join(c if c.isprintable() else " " for c in text[:200]) if isinstance(text, str) else ""
    return f": {' '.join(text.split())}" if text.strip() else ""


def _said(error: HTTPError, deadline: float) -> str:
    try:
        return message_of(json.loads(read_all(error, deadline)))
    except (ValueError, OSError, HTTPException, UnreachableError, RecursionError):
        return ""


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or "")) or None
    except ValueError:  # a date, or nothing: our own back-off will do
        return None


def _network_fault(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    return f"the connection failed ({type(error).__name__})"
