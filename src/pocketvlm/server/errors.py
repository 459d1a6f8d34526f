"""What goes wrong with a request → its status, body and headers."""

from __future__ import annotations

import logging

from starlette.responses import Response

from pocketvlm.protocol.chat_response import error_body, error_response, to_json
from pocketvlm.protocol.ollama_response import ollama_error

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1
OLLAMA = "/api/"  # what its paths begin with
OLLAMA_GENERATE = f"{OLLAMA}generate"


class HTTPError(Exception):
    """A request is refused before the model has seen it.

    Args:
        status: of HTTP, 4xx, 501 or 503.
        message: one line for the client.
        kind, code: the type and code of OpenAI's error body.
        retry_after: seconds after which a client that was refused for now may ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str = "invalid_request",
        *,
        retry_after: int = RETRY_SECONDS,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.retry_after = status, kind, code, retry_after


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def code_of(error: Exception) -> str:
    """What OpenAI's error body calls it; empty where nobody is told."""
    if isinstance(error, HTTPError):
        return error.code
    return "" if isinstance(error, ClientLeftError) else str(error_response(error)[1]["error"]["code"] or "")


def response_of(error: Exception, path: str = "") -> Response:
    """The response to a request that failed, in the form of the API that `path` belongs to: Ollama's, or OpenAI's.

    Messages of other libraries never reach a client.
    """
    if isinstance(error, ClientLeftError):
        return Response(status_code=499)  # as nginx writes it in its log: nobody reads this
    if isinstance(error, HTTPError):
        status, body = error.status, error_body(str(error), error.kind, error.code)
    else:
        status, body = error_response(error)
    log_fault(error)
    wait = error.retry_after if isinstance(error, HTTPError) else RETRY_SECONDS
    headers = {"Retry-After": str(wait)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith(OLLAMA):
        # As Ollama answers when as many wait as may; what a single client may not stays 429.
        status = 503 if body["error"]["code"] == "queue_full" else status
        body = ollama_error(body["error"]["message"], has_messages=path != OLLAMA_GENERATE)
    return Response(to_json(body), status, headers, "application/json")


def log_fault(error: Exception) -> None:
    """Tell of a fault that is no client's: the client gets no details of it."""
    if not isinstance(error, HTTPError | ClientLeftError) and error_response(error)[0] == 500:
        logger.error("a request failed", exc_info=error)
