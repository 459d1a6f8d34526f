"""What goes wrong with a request → its status, body and headers."""

from __future__ import annotations

import logging

from starlette.responses import Response

from pocketvlm.errors import PocketVLMError
from pocketvlm.protocol.chat_response import error_body, error_response, to_json

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1


class HTTPError(Exception):
    """A request is refused before the model has seen it.

    Args:
        status: of HTTP, 4xx or 503.
        message: one line for the client.
        kind, code: the type and code of OpenAI's error body.
    """

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", code: str = "invalid_request"
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code = status, kind, code


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def response_of(error: Exception) -> Response:
    """The response to a request that failed. Messages of other libraries never reach a client."""
    if isinstance(error, ClientLeftError):
        return Response(status_code=499)  # as nginx writes it in its log: nobody reads this
    if isinstance(error, HTTPError):
        status, body = error.status, error_body(str(error), error.kind, error.code)
    else:
        status, body = error_response(error)
    log_fault(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(to_json(body), status, headers, "application/json")


def log_fault(error: Exception) -> None:
    """Tell of a fault that is no client's: the client gets no details of it."""
    if not isinstance(error, HTTPError | PocketVLMError | ClientLeftError):
        logger.error("a request failed", exc_info=error)
