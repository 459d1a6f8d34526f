"""A streamed chat completion of an endpoint → `Delta`s, as the engine's own streams have them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pocketvlm.api.answers import Answer, Delta, Usage
from pocketvlm.client.http import (
    MAX_BODY,
    RefusedError,
    UnreachableError,
    check_address,
    message_of,
    opened,
    read_all,
)
from pocketvlm.errors import ConfigError, EngineError

REQUEST_FAULTS = (400, 404, 413, 422)


class ChatEndpoint:
    """An endpoint that is talked to.

    Args:
        url: up to and with the version, as in http://127.0.0.1:8000/v1.
        model: its name there; None takes the first that it names.
        timeout: seconds of silence that are borne.

    Raises:
        ConfigError: not an address, no such model, or the key is not taken.
        EngineError: it cannot be reached.
    """

    def __init__(self, url: str, model: str | None = None, *, api_key: str = "", timeout: float = 300.0) -> None:
        check_address(url, api_key)
        self.url, self._api_key, self._timeout = url.rstrip("/"), api_key, timeout
        self.model = self._first_model() if model is None else model

    def _first_model(self) -> str:
        try:
            with opened(f"{self.url}/models", api_key=self._api_key, timeout=self._timeout) as response:
                found = json.loads(read_all(response, time.monotonic() + self._timeout))
            name = found["data"][0]["id"]
        except (RefusedError, UnreachableError) as error:
            raise self._fault(error) from None
        except (ValueError, LookupError, TypeError, RecursionError):
            name = None
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{self.url} names no model", hint="Name one with --model.")
        return name

    def stream(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> RemoteStream:
        """Ask for an answer, piece by piece.

        Args:
            messages: in OpenAI's format.
            options: further fields of the body.
        """
        body = {"model": self.model, "messages": messages, **options, "stream": True}
        data = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
        return RemoteStream(self._lines(data))

    def _lines(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The chunks of a stream, up to its end."""
        url = f"{self.url}/chat/completions"
        try:
            with opened(url, data, api_key=self._api_key, timeout=self._timeout) as response:
                size = 0
                while line := response.readline(MAX_BODY):
                    size += len(line)
                    if size > MAX_BODY:
                        raise UnreachableError(f"the answer has more than {MAX_BODY} bytes")
                    if not line.startswith(b"data:"):
                        continue
                    text = line[5:].strip()
                    if text == b"[DONE]":
                        return
                    chunk = json.loads(text)
                    if not isinstance(chunk, dict):
                        raise ValueError
                    if "error" in chunk:
                        raise EngineError(f"{self.url} gave the answer up{message_of(chunk)}")
                    yield chunk
                raise UnreachableError("the answer ended before its last piece")
        except (RefusedError, UnreachableError) as error:
            raise self._fault(error) from None
        except (ValueError, RecursionError):
            raise EngineError(f"{self.url} sent what is no piece of an answer") from None

    def _fault(self, error: RefusedError | UnreachableError) -> Exception:
        if isinstance(error, UnreachableError):
            return EngineError(f"{self.url}: {error}")
        if error.status == 404 and not self.url.endswith("/v1"):
            return ConfigError(f"{self.url} has no such API", hint="Give the URL up to and with its version: …/v1.")
        if error.status in REQUEST_FAULTS:
            return ConfigError(f"{self.url} refuses this{error.said or f' (status {error.status})'}")
        if error.status in (401, 403):
            return ConfigError(
                f"{self.url} wants a key{error.said}", hint="Give it with --api-key or the variable OPENAI_API_KEY."
            )
        return EngineError(f"{self.url} answered with {error}")


class RemoteStream:
    """The first answer of a stream; `answer` is there once `deltas` has been read to its end."""

    def __init__(self, chunks: Iterator[dict[str, Any]]) -> None:
        self._chunks, self._began = chunks, time.perf_counter()
        self._texts, self._reasonings = list[str](), list[str]()
        self._usage, self._reason, self._timing = Usage(0, 0, 0), "", dict[str, float]()

    def deltas(self) -> Iterator[Delta]:
        """What is new, as it comes.

        Raises:
            ConfigError: the endpoint refuses the request.
            EngineError: the answer was lost.
        """
        for chunk in self._chunks:
            delta = self._delta(chunk)
            if delta is not None:
                if not self._timing:
                    self._timing["first_token"] = time.perf_counter() - self._began
                yield delta
        self._timing["total"] = time.perf_counter() - self._began

    def _delta(self, chunk: Mapping[str, Any]) -> Delta | None:
        if isinstance(usage := chunk.get("usage"), Mapping):
            counts = (usage.get(f"{kind}_tokens") for kind in ("prompt", "visual", "completion"))
            self._usage = Usage(*(count if isinstance(count, int) else 0 for count in counts))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, Mapping) or choice.get("index", 0) != 0:
            return None
        piece = choice.get("delta")
        piece = piece if isinstance(piece, Mapping) else {}
        text = _text(piece.get("content"))
        reasoning = _text(piece.get("reasoning_content")) or _text(piece.get("reasoning"))  # as newer vLLM calls it
        reason = _text(choice.get("finish_reason")) or None
        self._texts.append(text)
        self._reasonings.append(reasoning)
        self._reason = reason or self._reason
        return Delta(0, text, reasoning, finish_reason=reason) if text or reasoning or reason else None

    @property
    def answer(self) -> Answer:
        """The whole answer."""
        reasoning = "".join(self._reasonings) or None
        return Answer("".join(self._texts), self._usage, self._timing, self._reason or "stop", reasoning)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
