"""Bodies in strict JSON: of a request, as it arrives, bounded in bytes, in time and in depth; and of a response."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pocketvlm.protocol.chat_response import to_json
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.exchange import Exchange, exchange_of


async def read_json(request: Request) -> Any:
    """The value of a body.

    Raises:
        HTTPError, ClientLeftError: as `read_body`; the body is no JSON (400).
    """
    try:
        return json.loads(await read_body(request), parse_constant=_refuse)
    except ValueError:  # the library's own words may hold a piece of the body
        raise HTTPError(400, "the body is not JSON in UTF-8") from None


async def read_body(request: Request) -> bytes:
    """A body that is no danger to whoever parses it as JSON; from its end on the request counts as in flight.

    Raises:
        HTTPError: it is too large (413), too slow (408) or too deep (400); there is no room for it (429).
        ClientLeftError: the client went away before its end.
    """
    exchange = exchange_of(request)
    settings = exchange.settings
    try:
        raw = await asyncio.wait_for(_read(request, exchange), settings.upload_seconds)
    except TimeoutError:
        raise HTTPError(408, f"the body did not arrive in {settings.upload_seconds:g} seconds") from None
    except ClientDisconnect:
        raise ClientLeftError from None
    exchange.admit()
    structure = raw.translate(None, _NO_STRUCTURE)
    if len(structure) > settings.max_json_values:
        raise HTTPError(400, f"the body has more than {settings.max_json_values} commas and brackets")
    if _depth(structure) > settings.max_json_depth:
        raise HTTPError(400, f"the body has more than {settings.max_json_depth} brackets in brackets")
    return raw


def json_response(body: object) -> Response:
    """The response of an answer, as strict JSON."""
    return Response(to_json(body), media_type="application/json")


async def _read(request: Request, exchange: Exchange) -> bytes:
    limit = exchange.settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise HTTPError(413, f"the body has more than {limit} bytes")
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPError(413, f"the body has more than {limit} bytes")
        exchange.hold(len(part))
        parts.append(part)
    return b"".join(parts)


def _depth(structure: bytes) -> int:
    """An upper bound of how deep brackets stand in brackets: those within strings count too, unless they close.

    A string of brackets alone is refused, which no honest request has.
    """
    codes = np.frombuffer(structure, np.uint8)
    codes = codes[codes != ord(",")]
    steps = np.where((codes == ord("[")) | (codes == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_NO_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
