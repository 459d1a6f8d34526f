"""Who may ask: API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import Request

from pocketvlm.server.errors import HTTPError

MAX_HEADER = 4096


class KeyCheck:
    """Refuses requests without one of the keys; without keys, nobody.

    Args:
        keys: in plain text; only their hashes are kept.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __call__(self, request: Request) -> None:
        """Raises: HTTPError 401."""
        if not self._hashes:
            return
        header = request.headers.get("authorization", "")
        scheme, _, key = header[:MAX_HEADER].partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, so that the time says nothing about which one is near.
        known = [hmac.compare_digest(given, one) for one in self._hashes]
        if scheme.lower() != "bearer" or not any(known):
            raise HTTPError(
                401, "this server wants a key: Authorization: Bearer KEY", "authentication_error", "invalid_api_key"
            )
