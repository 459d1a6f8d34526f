"""POST /v1/chat/completions: a body → an answer, or its stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.api.answers import Delta
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.job import Job
from pocketvlm.protocol.chat_request import ChatRequest, parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion, to_json
from pocketvlm.protocol.chat_stream import ChatStream
from pocketvlm.server.body import read_json
from pocketvlm.server.errors import ClientLeftError, HTTPError, response_of
from pocketvlm.server.event_stream import DONE, EventStream, event, left
from pocketvlm.server.settings import ServerSettings

T = TypeVar("T")


@dataclass
class ChatService:
    """Answers bodies with one model.

    Attributes:
        names: what requests may call the model; the first is what answers say.
    """

    vlm: AsyncVLM
    settings: ServerSettings
    names: tuple[str, ...]

    async def complete(self, request: Request) -> Response:
        """The response to one request; errors are for `response_of`."""
        body = await read_json(request, self.settings)
        asked = parse_chat_completion(body)
        self._check(asked)
        head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.names[0],
            "tools": asked.options.get("tools"),
        }
        job = await while_there(request, self.vlm.prepare(asked.messages, **self._limited(asked.options)))
        if not asked.stream:
            await while_there(request, self._answer(job))
            return Response(to_json(chat_completion(job.answers(), **head)), media_type="application/json")
        deltas = self.vlm.run(job)
        # Until here, and until there is a first token, a refusal has a status of its own.
        first = await while_there(request, anext(deltas, None))
        stream = ChatStream(**head, count=job.request.params.n, include_usage=asked.include_usage)
        return EventStream(self._events(job, stream, first, deltas), send_seconds=self.settings.send_seconds)

    def _check(self, asked: ChatRequest) -> None:
        if asked.model is not None and asked.model not in self.names:
            message = f"this server has no model {asked.model[:100]!r}, but {', '.join(self.names)}"
            raise HTTPError(404, message, code="model_not_found")
        if asked.options.get("n", 1) > self.settings.max_n:
            raise HTTPError(400, f"n={asked.options['n']} is more than {self.settings.max_n}", code="invalid_value")

    def _limited(self, options: dict[str, Any]) -> dict[str, Any]:
        """No answer is longer, and no request takes longer, than the server allows."""
        most = self.settings.max_answer_tokens
        return {**options, "max_tokens": min(options.get("max_tokens", most), most)}

    async def _answer(self, job: Job) -> None:
        async with asyncio.timeout(self.settings.request_seconds), aclosing(self.vlm.run(job)) as deltas:
            async for _ in deltas:
                pass

    async def _events(
        self, job: Job, stream: ChatStream, first: Delta | None, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[str, None]:
        async with aclosing(deltas):
            try:
                for chunk in stream.start():
                    yield event(chunk)
                if first is not None:
                    for chunk in stream.add(first):
                        yield event(chunk)
                async for delta in deltas:
                    for chunk in stream.add(delta):
                        yield event(chunk)
                for chunk in stream.end(job.answers()):
                    yield event(chunk)
            except Exception as error:  # the status has been sent: the stream itself has to say it
                yield f"data: {bytes(response_of(error).body).decode()}\n\n"
            yield DONE


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is given up when the client leaves.

    Raises:
        ClientLeftError: it has.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.create_task(left(request.receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)
