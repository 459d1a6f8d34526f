"""What every API does with a request: prepare it, run it, abort it when the client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from pocketvlm.api.answers import Answer, Delta
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.job import Job
from pocketvlm.errors import DeadlineError
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.event_stream import left
from pocketvlm.server.exchange import Exchange, exchange_of
from pocketvlm.server.settings import ServerSettings, bare_name
from pocketvlm.server.tracing import Tracing

T = TypeVar("T")
BYTES_A_TOKEN = 16  # more than any text has on average


@dataclass
class Service:
    """One model and what the server allows.

    Attributes:
        names: what requests may call the model; the first is what answers say.
        began: seconds since 1970.
        loader: has adapters loaded and unloaded, one at a time, so that many do not take the threads of all others.
        tracing: where the spans of requests go; None without tracing.
    """

    vlm: AsyncVLM
    settings: ServerSettings
    names: tuple[str, ...]
    began: int = field(default_factory=lambda: int(time.time()))
    tracing: Tracing | None = None
    loader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "pocketvlm-adapters"), repr=False)

    def check_model(self, name: str | None) -> str:
        """The adapter of this name; "" for a name of the model itself.

        Raises:
            HTTPError: 404 for another model than those that are served.
        """
        if name is None or name in self.names:
            return ""
        if name in self.vlm.vlm.adapters:
            return name
        message = f"this server has no model {name[:100]!r}, but {', '.join(self.all_names)}"
        raise HTTPError(404, message, code="model_not_found")

    @property
    def all_names(self) -> tuple[str, ...]:
        """What requests may name as their model: the model itself, and its adapters."""
        return (*self.names, *self.vlm.vlm.adapters)

    def is_taken(self, name: str) -> bool:
        """Whether requests of any API would mean something that is served already by this name."""
        return bare_name(name) in map(bare_name, self.all_names)

    def said(self, adapter: str) -> str:
        """What answers say that they are from."""
        return adapter or self.names[0]

    def about(self) -> dict[str, Any]:
        """The defaults and limits of the model for pictures, for its card in /v1/models and for the page."""
        processor = self.vlm.vlm.processor
        return {
            "context": processor.model_config.text.max_position_embeddings,
            "downsample_mode": processor.model_config.downsample_mode,
            "max_slice_nums": processor.image_config.max_slice_nums,
            "max_images": processor.limits.max_images,
            "max_videos": processor.limits.max_videos,
            "max_media_bytes": processor.limits.max_bytes,
        }

    @property
    def most_text_bytes(self) -> int:
        """Of one request. Text that no context could hold is not even made into tokens, which takes seconds."""
        context = self.vlm.vlm.config.text.max_position_embeddings
        return min(self.settings.max_text_bytes, BYTES_A_TOKEN * context)

    async def prepare(
        self, request: Request, messages: Sequence[Any], options: Mapping[str, Any], adapter: str = ""
    ) -> Job:
        """A job within the server's limits, with the deadline of its request, for which it counts.

        Args:
            options: of `VLM.chat`.
            adapter: of `check_model`.

        Raises:
            HTTPError, PocketVLMError: the request cannot be honoured.
            ClientLeftError: the client has disconnected.
        """
        job = await self.prepare_only(request, messages, options, adapter)
        exchange_of(request).add(job)
        return job

    async def prepare_only(
        self, request: Request, messages: Sequence[Any], options: Mapping[str, Any], adapter: str = ""
    ) -> Job:
        """As `prepare`; but the job may yet be refused, or never be run, and nothing is counted for it."""
        settings = self.settings
        for name, most in (("n", settings.max_n), ("max_tokens", settings.max_answer_tokens)):
            if options.get(name, 0) > most:
                raise HTTPError(400, f"{name}={options[name]}, this server gives at most {most}", code="invalid_value")
        exchange = exchange_of(request)
        check_messages(messages, exchange, self.most_text_bytes, tools=options.get("tools"))
        options = {"max_tokens": settings.max_answer_tokens, **options, "adapter": adapter}
        work = self.vlm.prepare(messages, keep=exchange.keep, hold=exchange.lend, **options)
        return await self.while_there(request, work)

    async def answers(self, request: Request, job: Job) -> list[Answer]:
        """The complete answers; the job is aborted when the client disconnects."""
        await self.while_there(request, self._run(job))
        return job.answers()

    async def _run(self, job: Job) -> None:
        async with aclosing(self.vlm.run(job)) as deltas:
            async for _ in deltas:
                pass

    async def stream(self, request: Request, job: Job) -> AsyncGenerator[Delta, None]:
        """The deltas of the answers, as they are generated.

        This returns with the first token: until then, an error can still have its own HTTP status. The exchange closes
        the stream, so it ends even if the client disconnects before the first byte of the response.
        """
        deltas = self.vlm.run(job)
        exchange_of(request).streams.append(deltas)
        first = await self.while_there(request, anext(deltas, None))
        return _behind(first, deltas)

    async def while_there(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the client disconnects or the deadline of the request passes.

        Raises:
            ClientLeftError, DeadlineError: that has happened.
        """
        task, leaving = asyncio.ensure_future(work), asyncio.create_task(left(request.receive))
        seconds = exchange_of(request).deadline - time.monotonic()
        try:
            await asyncio.wait((task, leaving), timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientLeftError if leaving.done() else DeadlineError("the deadline has passed")
            return task.result()
        finally:
            for one in (task, leaving):
                one.cancel()
            await asyncio.gather(task, leaving, return_exceptions=True)


async def _behind(first: Delta | None, rest: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """A stream whose first delta has been taken."""
    async with aclosing(rest):
        if first is not None:
            yield first
        async for delta in rest:
            yield delta


def check_messages(messages: Sequence[Any], exchange: Exchange, most: int, tools: Any = None) -> None:
    """Raise `HTTPError` 400 for too many messages or too much text; record the number of pictures for the log.

    Args:
        most: bytes of text in messages and in the definitions of tools, which are part of the prompt too.
    """
    settings = exchange.settings
    if len(messages) > settings.max_messages:
        raise HTTPError(400, f"the request has {len(messages)} messages, at most {settings.max_messages} are taken")
    size, parts, last = 0, 0, ""
    for message in messages:
        if not isinstance(message, Mapping):
            continue  # for the processor to refuse
        content = message.get("content")
        contents = content if isinstance(content, list | tuple) else [content]
        parts += len(contents)
        for part in contents:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                size += text_bytes(text)
                last = text
            elif isinstance(part, Mapping):
                exchange.images += 1
        # Reasoning and calls of earlier answers are part of the prompt too.
        size += sum(text_bytes(value) for name, value in message.items() if name != "content")
    if parts > settings.max_parts:
        raise HTTPError(400, f"the messages have {parts} parts, at most {settings.max_parts} are taken")
    size += text_bytes(tools)
    if size > most:
        what = "messages and tools" if tools else "messages"
        raise HTTPError(400, f"the {what} have {size} bytes of text, at most {most} are taken")
    if settings.log_content:
        exchange.question = last


def text_bytes(value: Any) -> int:
    """Bytes of all strings within a JSON value, including names of fields."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if isinstance(value, Mapping):
        return sum(map(text_bytes, value)) + sum(map(text_bytes, value.values()))
    return sum(map(text_bytes, value)) if isinstance(value, list | tuple) else 0
