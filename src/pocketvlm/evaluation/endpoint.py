"""An OpenAI-compatible endpoint as somebody who answers: POST {url}/chat/completions, several requests at a time.

Written on the standard library: one request and one answer need no client library. Redirects are not followed, since
they would carry the key to another host.
"""

from __future__ import annotations

import base64
import json
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.evaluation.answerers import Numbered, Reply
from pocketvlm.evaluation.ranges import ENDPOINT
from pocketvlm.evaluation.scoring import metric_of
from pocketvlm.evaluation.tasks import Clip, Example, Media
from pocketvlm.processing.media.load_image import is_video, load_image
from pocketvlm.ranges import check_all
from pocketvlm.synthetic.drawing.files import to_mp4, to_png

_MAX_BODY = 16 * 2**20
_MOST_WAIT = 60.0  # seconds, whatever Retry-After says
_IMAGE_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
_LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


class EndpointError(ConfigError):
    """The endpoint cannot be used at all: no such address or model, or no access."""


class _AttemptError(Exception):
    """One request's failure that another attempt may mend; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint and how it is asked.

    Attributes:
        url: up to and with the version, as in http://127.0.0.1:8000/v1.
        model: the name it serves the model under.
        sampling: options of sampling; without `max_tokens` the metric decides it.
        media: options of pictures and videos, sent as vLLM's `mm_processor_kwargs`.
        api_key: sent as a bearer token.
        concurrency: requests at a time.
        timeout: seconds for one request, all of it.
        retries: further attempts after 429, 5xx, a timeout or a broken connection.
        backoff: seconds before the first of these; doubled each time, Retry-After permitting.
    """

    url: str
    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    api_key: str = field(default="", repr=False)
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fine = False
        if not fine or parts.username or parts.query or parts.fragment or not self.url.isprintable() or " " in self.url:
            raise ConfigError("the endpoint is not a plain http(s) URL", hint="Example: http://127.0.0.1:8000/v1")
        if not self.model:
            raise ConfigError("the endpoint's model has no name", hint="Give the name it is served under.")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("the API key holds characters that no header can carry")
        check_all(ENDPOINT, self)

    def answer(self, examples: Iterable[Numbered]) -> Iterator[tuple[int, Example, Reply]]:
        """Answer examples as replies come in; no more than `concurrency` are drawn ahead."""
        stop = threading.Event()
        jobs: queue.Queue[Numbered | None] = queue.Queue()
        finished: queue.Queue[tuple[int, Example, Reply | Exception]] = queue.Queue()

        def work() -> None:
            while (job := jobs.get()) is not None:
                try:
                    finished.put((*job, self._reply(job[1], stop)))
                except Exception as error:
                    finished.put((*job, error))

        # Daemons: after Ctrl-C nobody waits for answers that are still to come.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(self.concurrency)]
        for worker in workers:
            worker.start()
        waiting, source = 0, iter(examples)
        try:
            while True:
                while waiting < self.concurrency and (job := next(source, None)) is not None:
                    jobs.put(job)
                    waiting += 1
                if not waiting:
                    return
                index, example, reply = finished.get()
                waiting -= 1
                if isinstance(reply, Exception):
                    raise reply
                yield index, example, reply
        finally:
            stop.set()
            for _ in workers:
                jobs.put(None)

    def _reply(self, example: Example, stop: threading.Event) -> Reply:
        try:
            body = json.dumps(self._request(example)).encode()
        except MediaError as error:
            return Reply(error=str(error))
        wait = self.backoff
        for attempt in range(self.retries + 1):
            began = time.perf_counter()
            try:
                answer = self._post(body)
            except _AttemptError as error:
                reason = str(error)
                if attempt == self.retries or stop.wait(min(_MOST_WAIT, error.wait or wait * random.uniform(0.5, 1.5))):
                    break
                wait *= 2
                continue
            seconds = time.perf_counter() - began
            return answer if isinstance(answer, Reply) else _parse(answer, seconds)
        return Reply(error=f"{reason}, after {attempt + 1} attempts")

    def _request(self, example: Example) -> dict[str, Any]:
        content = [*map(_part, example.media), {"type": "text", "text": example.question}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": metric_of(example).max_tokens,
            **self.sampling,
            **({"mm_processor_kwargs": dict(self.media)} if self.media else {}),
        }

    def _post(self, body: bytes) -> bytes | Reply:
        """The body of an answer with status 200, or the reply that a refusal of this request is.

        Raises:
            _AttemptError: worth another attempt.
            EndpointError: no request will ever succeed.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "pocketvlm"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = Request(f"{self.url.rstrip('/')}/chat/completions", body, headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener().open(request, timeout=self.timeout) as response:
                return _read(response, deadline)
        except HTTPError as error:
            with error:
                return self._refused(error, deadline)
        except URLError as error:
            raise _AttemptError(_network_fault(error.reason)) from None
        except (OSError, HTTPException) as error:
            raise _AttemptError(_network_fault(error)) from None

    def _refused(self, error: HTTPError, deadline: float) -> Reply:
        said = _message(error, deadline)
        if error.code == 429 or error.code >= 500:
            raise _AttemptError(f"status {error.code}{said}", _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403, 404, 405) or 300 <= error.code < 400:
            raise EndpointError(
                f"the endpoint answered with status {error.code}{said}",
                hint="Check its URL, the model's name and the API key.",
            )
        return Reply(error=f"status {error.code}{said}")

    def _opener(self) -> OpenerDirector:
        # Proxies are those of the environment, but the machine itself is never reached through one.
        own = [ProxyHandler({})] if urlsplit(self.url).hostname in _LOCAL_HOSTS else []
        return build_opener(_NoRedirects, *own)


def _part(medium: Media) -> dict[str, Any]:
    """A picture or video as a part of a message, its bytes within it."""
    if isinstance(medium, Clip):
        return _data_url("video", "video/mp4", to_mp4(medium.frames, medium.fps))
    if isinstance(medium, Path | bytes):
        if is_video(medium):
            return _data_url("video", "video/mp4", _read_file(medium))
        # Files that every endpoint reads go as they are; all others are decoded here.
        content = _read_file(medium)
        for magic, kind in _IMAGE_TYPES:
            if content.startswith(magic):
                return _data_url("image", kind, content)
    return _data_url("image", "image/png", to_png(load_image(medium)))


def _read_file(medium: Path | bytes) -> bytes:
    if isinstance(medium, bytes):
        return medium
    try:
        return medium.read_bytes()
    except OSError as error:
        raise MediaError(f"{medium} cannot be read: {error.strerror}", hint="Check the path.") from None


def _data_url(kind: str, media_type: str, content: bytes) -> dict[str, Any]:
    url = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _read(response: Any, deadline: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(2**16):
        body += chunk
        if len(body) > _MAX_BODY:
            raise _AttemptError(f"the answer has more than {_MAX_BODY} bytes")
        if time.monotonic() > deadline:
            raise _AttemptError("timed out")
    if response.length:  # http.client reports a body that ends early only to readers of the whole
        raise _AttemptError("the answer ended before its last byte")
    return bytes(body)


def _parse(body: bytes, seconds: float) -> Reply:
    """The reply in the body of a chat completion; a body that is none is this example's failure."""
    try:
        answer = json.loads(body)
        content = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        prompt, visual, completion = (
            _count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "visual", "completion")
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        content = 0
    if not isinstance(content, str | None):
        return Reply(seconds=seconds, error="the endpoint's answer is not a chat completion")
    # Servers that do not set reasoning apart leave it before the answer.
    _, thought, rest = (content or "").encode(errors="replace").decode().rpartition("</think>")
    return Reply(rest.lstrip("\n") if thought else rest, prompt, visual, completion, seconds)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _message(error: HTTPError, deadline: float) -> str:
    """What the endpoint says about a refusal, in at most 200 harmless characters, with a colon before it."""
    try:
        found = json.loads(_read(error, deadline))
        found = found.get("error", found)
        text = found if isinstance(found, str) else found.get("message") or found.get("detail")
    except (ValueError, AttributeError, OSError, HTTPException, _AttemptError, RecursionError):
        return ""
    text = "".join(c if c.isprintable() else " " for c in text[:200]) if isinstance(text, str) else ""
    return f": {' '.join(text.split())}" if text.strip() else ""


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
