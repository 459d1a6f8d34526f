"""An OpenAI-compatible endpoint as somebody who answers: POST {url}/chat/completions, several requests at a time."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketvlm.client.http import RefusedError, UnreachableError, check_address, opened, read_all
from pocketvlm.client.media import data_url, media_parts, page_resolution
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.evaluation.answerers import Numbered, Reply
from pocketvlm.evaluation.ranges import ENDPOINT
from pocketvlm.evaluation.scoring import metric_of
from pocketvlm.evaluation.tasks import Clip, Example, Media
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.picture_options import merged_options
from pocketvlm.ranges import check_all
from pocketvlm.remote_files import is_remote
from pocketvlm.synthetic.drawing.files import to_mp4

_MOST_WAIT = 60.0  # seconds, whatever Retry-After says


class EndpointError(ConfigError):
    """The endpoint cannot be used at all: no such address or model, or no access."""


class _AttemptError(Exception):
    """One request's failure that another attempt may mend; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


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
        check_address(self.url, self.api_key)
        if not self.model:
            raise ConfigError("the endpoint's model has no name", hint="Give the name it is served under.")
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
        own = dict(example.options)
        tools = {"tools": own.pop("tools")} if "tools" in own else {}
        media = merged_options(self.media, own)
        resolution = page_resolution(media)
        media.pop("page_dpi", None)  # pages are drawn here
        shown = [part for medium in example.media for part in _parts(medium, resolution)]
        content = [*shown, {"type": "text", "text": example.question}]
        return {
            "model": self.model,
            "messages": [*_sent(example.messages, resolution)] or [{"role": "user", "content": content}],
            "max_tokens": metric_of(example).max_tokens,
            **tools,
            **self.sampling,
            **({"mm_processor_kwargs": media} if media else {}),
        }

    def _post(self, body: bytes) -> bytes | Reply:
        """The body of an answer with status 200, or the reply that a refusal of this request is.

        Raises:
            _AttemptError: worth another attempt.
            EndpointError: no request will ever succeed.
        """
        deadline = time.monotonic() + self.timeout
        url = f"{self.url.rstrip('/')}/chat/completions"
        try:
            with opened(url, body, api_key=self.api_key, timeout=self.timeout) as response:
                return read_all(response, deadline)
        except RefusedError as error:
            return _refused(error)
        except UnreachableError as error:
            raise _AttemptError(str(error)) from None


def _refused(error: RefusedError) -> Reply:
    """The reply that a refusal of this request is; what no other attempt or no other request changes is raised."""
    if error.status == 429 or error.status >= 500:
        raise _AttemptError(str(error), error.retry_after)
    if error.status in (401, 403, 404, 405) or 300 <= error.status < 400:
        raise EndpointError(
            f"the endpoint answered with {error}", hint="Check its URL, the model's name and the API key."
        )
    return Reply(error=str(error))


def _sent(messages: Iterable[dict[str, Any]], resolution: Resolution) -> Iterator[dict[str, Any]]:
    """The messages of a conversation as the protocol has them: with the bytes of pictures and videos within them, and
    with ids by which results of tools name their calls; here their order tells that."""
    waiting: list[str] = []
    for number, message in enumerate(messages):
        content, sent = message.get("content"), dict(message)
        if isinstance(content, list):
            sent["content"] = [part for one in content for part in _sent_parts(one, resolution)]
        if calls := message.get("tool_calls"):
            waiting = [f"call_{number}_{i}" for i in range(len(calls))]
            sent["tool_calls"] = [_sent_call(call["function"], id) for call, id in zip(calls, waiting, strict=True)]
        elif message["role"] == "tool" and waiting:
            sent["tool_call_id"] = waiting.pop(0)
        yield sent


def _sent_call(function: Mapping[str, Any], id: str) -> dict[str, Any]:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": function["name"], "arguments": text}}


def _sent_parts(part: dict[str, Any], resolution: Resolution) -> list[dict[str, Any]]:
    if part["type"] == "text":
        return [part]
    if part.get("max_slice_nums") is not None:  # others would ignore it without a word
        text = "a picture has max_slice_nums or a detail of its own, which endpoints do not share"
        raise MediaError(text, hint="Give it to the whole sample, as a column.")
    medium = part[part["type"]]
    medium = medium["url"] if isinstance(medium, Mapping) else medium
    is_path = isinstance(medium, str) and not (is_url(medium) or is_data_url(medium) or is_remote(medium))
    return _parts(Path(medium) if is_path else medium, resolution)


def _parts(medium: Media, resolution: Resolution) -> list[dict[str, Any]]:
    """A picture, a document or a video as parts of a message, their bytes within them."""
    if isinstance(medium, Clip):
        return [data_url("video", "video/mp4", to_mp4(medium.frames, medium.fps))]
    return media_parts(medium, resolution=resolution)


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
