"""POST /v1/chat/completions: a body → an answer, or its stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.api.answers import Delta
from pocketvlm.api.job import Job
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion
from pocketvlm.protocol.chat_stream import ChatStream
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.errors import response_of
from pocketvlm.server.event_stream import DONE, EventStream, event
from pocketvlm.server.service import Service


async def chat_completions(service: Service, request: Request) -> Response:
    """The response to one request; errors are for `response_of`."""
    asked = await read_json(request, parse_chat_completion)
    adapter = service.check_model(asked.model)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.said(adapter),
    }
    job = await service.prepare(request, asked.messages, asked.options, adapter)
    if not asked.stream:
        answers = await service.answers(request, job)
        return json_response(chat_completion(answers, **head))
    deltas = await service.stream(request, job)
    stream = ChatStream(
        **head,
        count=job.request.params.n,
        include_usage=asked.include_usage,
        include_timings=asked.include_timings,
    )
    return EventStream(_events(job, stream, deltas), send_seconds=service.settings.send_seconds)


async def _events(job: Job, stream: ChatStream, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
    async with aclosing(deltas):
        try:
            # What is known at the same time is sent at once: each write costs as much as a hundred events.
            text = _joined(stream.start())
            async for delta in deltas:
                text += _joined(stream.add(delta))
                if text and not job.is_done:
                    yield text
                    text = ""
            yield text + _joined(stream.end(job.answers(), job.request.views)) + DONE
        except Exception as error:  # the status has been sent: the stream itself has to say it
            yield f"data: {bytes(response_of(error).body).decode()}\n\n{DONE}"


def _joined(chunks: Iterable[dict[str, Any]]) -> str:
    return "".join(map(event, chunks))
