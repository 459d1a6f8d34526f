"""What surrounds every application of ours: request ids, limits of heads, and what scripts of other origins may see.

Nothing here imports PyTorch: the process in front of many replicas has it too.
"""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm.server.errors import HTTPError, response_of
from pocketvlm.server.settings import ServerSettings

MAX_ADDRESS, MAX_HEADERS = 8 * 1024, 16 * 1024  # bytes


def cross_origin(settings: ServerSettings) -> dict[str, Any]:
    """Options of Starlette's `CORSMiddleware`."""
    return {
        "allow_origins": list(settings.cors_origins),
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        # Browsers hide all other headers from scripts of another origin.
        "expose_headers": ["x-request-id", "retry-after"],
    }


class Heads:
    """Every response has an `x-request-id`: the client's own, if it is short and plain, or a new one. Heads and
    addresses of requests that are too long are refused, however few pieces they arrive in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        plain = 0 < len(given) <= 64 and all(33 <= byte < 127 for byte in given)
        name = given if plain else uuid.uuid4().hex.encode()
        scope["pocketvlm.request_id"] = name.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        app = self.app
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_ADDRESS:
            app = response_of(HTTPError(414, f"the address has more than {MAX_ADDRESS} bytes"), scope["path"])
        elif sum(map(len, itertools.chain(*scope["headers"]))) > MAX_HEADERS:
            app = response_of(HTTPError(431, f"the headers have more than {MAX_HEADERS} bytes"), scope["path"])
        elif {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            # Two lengths are how requests are hidden in others where a proxy stands before the server.
            app = _ends_connection(response_of(HTTPError(400, "the request has two lengths"), scope["path"]))
        return await app(scope, receive, send_with_id)


def _ends_connection(response: Response) -> Response:
    response.headers["Connection"] = "close"
    return response
