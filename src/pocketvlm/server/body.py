"""Bodies in strict JSON: of a request, as it arrives, bounded in bytes, in time and in depth; and of a response.

The event loop waits for nothing large: what a body holds is counted piece by piece, and a large one is read, and made
into a request, in a thread. Some steps keep the interpreter to themselves all the same: they are the fastest there are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pocketvlm.protocol.chat_response import to_json
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.exchange import Exchange, exchange_of
from pocketvlm.server.json_structure import JSONStructure

T = TypeVar("T")
LARGE = 32 * 1024  # bytes of a body that is read in a thread


async def read_json(request: Request, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the value of a body.

    Raises:
        HTTPError, ClientLeftError: as `read_body`; the body is no JSON (400).
        PocketVLMError: as `parse`.
    """
    raw = await read_body(request)
    if len(raw) < LARGE:
        return parse(_value(raw))
    return await asyncio.to_thread(lambda: parse(_value(raw)))


async def read_body(request: Request) -> bytes:
    """A body that is no danger to whoever parses it as JSON; from its end on the request counts as in flight.

    Raises:
        HTTPError: it is too large (413), too slow (408) or too deep (400); there is no room for it (429).
        ClientLeftError: the client went away before its end.
    """
    exchange = exchange_of(request)
    settings = exchange.settings
    try:
        async with asyncio.timeout(settings.upload_seconds):
            raw = await _read(request, exchange)
    except TimeoutError:
        raise HTTPError(408, f"the body did not arrive in {settings.upload_seconds:g} seconds") from None
    except ClientDisconnect:
        raise ClientLeftError from None
    exchange.admit()
    return raw


def json_response(body: object) -> Response:
    """The response of an answer, as strict JSON."""
    return Response(to_json(body), media_type="application/json")


async def _read(request: Request, exchange: Exchange) -> bytes:
    limit = exchange.settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise HTTPError(413, f"the body has more than {limit} bytes, which is max_body_bytes of this server")
    parts, size, structure = list[bytes](), 0, JSONStructure()
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPError(413, f"the body has more than {limit} bytes, which is max_body_bytes of this server")
        exchange.hold(len(part))
        parts.append(part)
        structure.add(part)
    # Not before its end: who is still sending would not read why.
    if structure.values > exchange.settings.max_json_values:
        raise HTTPError(400, f"the body has more than {exchange.settings.max_json_values} commas and brackets")
    if structure.depth > exchange.settings.max_json_depth:
        raise HTTPError(400, f"the body has more than {exchange.settings.max_json_depth} brackets in brackets")
    return b"".join(parts)


def _value(raw: bytes) -> Any:
    if len(raw) >= LARGE and raw.isascii():
        # Several times faster with pictures in base64; what it does not take is read once more below.
        try:
            return from_json(raw, allow_inf_nan=False)
        except ValueError:
            pass
    try:
        return json.loads(str(raw, "utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):  # the library's own words may hold a piece of the body
        raise HTTPError(400, "the body is not JSON in UTF-8") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
