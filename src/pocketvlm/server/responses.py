"""POST /v1/responses: a body → a response, or its events. Nothing is stored."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.api.answers import Delta
from pocketvlm.api.choice import REASONING_ENDS
from pocketvlm.api.job import Job
from pocketvlm.errors import PocketVLMError
from pocketvlm.protocol.chat_response import error_response
from pocketvlm.protocol.responses_request import ResponsesRequest, parse_response_request
from pocketvlm.protocol.responses_response import response_usage
from pocketvlm.protocol.responses_stream import ResponseStream
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.errors import HTTPError, log_fault
from pocketvlm.server.event_stream import EventStream, event
from pocketvlm.server.service import Service


async def responses(service: Service, request: Request) -> Response:
    """The response to one request; errors are for `response_of`."""
    asked = await read_json(request, parse_response_request)
    adapter = service.check_model(asked.model)
    began = int(time.time())
    try:
        job = await service.prepare(request, asked.messages, asked.options, adapter)
    except (HTTPError, PocketVLMError) as error:
        error.args = (_in_its_words(str(error), asked.places),)
        raise
    stream = ResponseStream(_head(service.said(adapter), asked, job, began), has_logprobs="logprobs" in asked.options)
    deltas = await service.stream(request, job)
    if asked.stream:
        return EventStream(_events(job, stream, deltas), send_seconds=service.settings.send_seconds)
    await service.while_there(request, _take(stream, deltas))
    return json_response(stream.whole(_usage(job), now=int(time.time())))


def _head(model: str, asked: ResponsesRequest, job: Job, began: int) -> dict[str, Any]:
    params = job.request.params
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "created_at": began,
        "model": model,
        "temperature": params.temperature,
        "top_p": params.top_p,
        **asked.echo,
    }


async def _take(stream: ResponseStream, deltas: AsyncGenerator[Delta, None]) -> None:
    async with aclosing(deltas):
        async for delta in deltas:
            for _ in stream.add(delta):
                pass


async def _events(job: Job, stream: ResponseStream, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[str, None]:
    async with aclosing(deltas):
        try:
            for one in stream.start():
                yield event(one, one["type"])
            async for delta in deltas:
                for one in stream.add(delta):
                    yield event(one, one["type"])
            for one in stream.end(_usage(job), now=int(time.time())):
                yield event(one, one["type"])
        except Exception as error:  # the status has been sent: the stream itself has to say it
            log_fault(error)
            for one in stream.fail(error_response(error)[1]["error"]["message"]):
                yield event(one, one["type"])


def _usage(job: Job) -> dict[str, Any]:
    (answer,) = job.answers()
    thinking = 0
    if answer.reasoning is not None:
        end = job.tokenizer.control_tokens.get(REASONING_ENDS)
        ids = answer.token_ids
        thinking = ids.index(end) + 1 if end in ids else len(ids)
    return response_usage(answer, thinking)


def _in_its_words(message: str, places: Sequence[str]) -> str:
    """The message of an error with the names that the body has for messages and options."""

    def place(found: re.Match[str]) -> str:
        return places[int(found[1])] if int(found[1]) < len(places) else found[0]

    message = re.sub(r"\bmessages\[(\d{1,9})\]", place, message)
    return re.sub(r"\bmax_tokens\b", "max_output_tokens", message)
