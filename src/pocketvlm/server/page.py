"""The page at `/`: a fixed list of files, read once, under a strict content-security policy.

It needs no key: there is nothing in it that is not in the package. What it asks of the API needs one like any request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests of this origin only; pictures and clips that were chosen are blob: URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",  # taking a photograph is the system's, not ours
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag: a new version shows at once
}


def add_page(router: Router) -> None:
    """Add the routes of the page: `/` and `/page/NAME`. What is in the folder now is all that is ever served."""
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in MEDIA_TYPES:
            at = "/" if path.name == "index.html" else f"/page/{path.name}"
            router.add_route(at, _giving(path.read_bytes(), MEDIA_TYPES[path.suffix]), methods=["GET"])


def _giving(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    headers = {**HEADERS, "ETag": tag}

    async def give(request: Request) -> Response:
        known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return give
