"""POST /api/chat and /api/generate of Ollama's API: a body → an answer, or its stream."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.api.answers import Delta
from pocketvlm.api.job import Job
from pocketvlm.protocol.ollama_request import parse_ollama
from pocketvlm.protocol.ollama_response import OllamaAnswer
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.errors import HTTPError, response_of
from pocketvlm.server.event_stream import NDJSON, line
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service
from pocketvlm.server.settings import bare_name

NOT_OFFERED = (
    *(("POST", f"/api/{name}") for name in ("embed", "embeddings", "pull", "push", "create", "copy")),
    ("DELETE", "/api/delete"),
    *((method, "/api/blobs/{digest}") for method in ("HEAD", "POST")),
)


async def chat(service: Service, request: Request) -> Response:
    """POST /api/chat; errors are for `response_of`."""
    return await _answer("chat", service, request)


async def generate(service: Service, request: Request) -> Response:
    """POST /api/generate."""
    return await _answer("generate", service, request)


async def not_offered(_service: Service, request: Request) -> Response:
    """What Ollama does beside answering."""
    raise HTTPError(501, f"this server answers with one model and has no {request.url.path[:100]}")


async def is_running(_request: Request) -> Response:
    """HEAD /, and GET where there is no page: by them Ollama's clients ask whether anybody is there."""
    return Response("Ollama is running", media_type="text/plain")


def check_model(service: Service, name: str) -> str:
    """The adapter of this name, "" for the model itself; `HTTPError` 404 for another. Ollama's clients may put
    `:latest` behind it, or leave it out."""
    names = service.all_names
    meant = (known for known in names if bare_name(known) == bare_name(name))
    return service.check_model(name if name in names else next(meant, name))


async def _answer(kind: str, service: Service, request: Request) -> Response:
    asked = await read_json(request, partial(parse_ollama, kind))
    adapter = check_model(service, asked.model)
    form = OllamaAnswer(kind, asked.model, uuid.uuid4().hex)
    if asked.chat is None:
        # The model stays loaded for as long as the server runs; clients wait for the word alone.
        return json_response(form.nothing("unload" if asked.unloads else "load"))
    job = await service.prepare_only(request, asked.chat.messages, asked.chat.options, adapter)
    if asked.num_ctx is not None:
        _limit(job, asked.num_ctx)
    exchange_of(request).add(job)
    if not asked.stream:
        return json_response(form.whole((await service.answers(request, job))[0]))
    deltas = await service.stream(request, job)
    return NDJSON(_lines(job, form, deltas, request.url.path), send_seconds=service.settings.send_seconds)


async def _lines(
    job: Job, form: OllamaAnswer, deltas: AsyncGenerator[Delta, None], path: str
) -> AsyncGenerator[str, None]:
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                if (piece := form.piece(delta)) is not None:
                    yield line(piece)
            yield line(form.end(job.answers()[0]))
        except Exception as error:  # the status has been sent: the stream itself has to say it
            yield f"{bytes(response_of(error, path).body).decode()}\n"


def _limit(job: Job, num_ctx: int) -> None:
    """Hold prompt and answer together to the context that a client wants."""
    request = job.request
    left = num_ctx - request.prompt_tokens
    if left < 1:
        raise HTTPError(
            400, f"the prompt has {request.prompt_tokens} tokens, which leaves no room within num_ctx={num_ctx}"
        )
    job.limit(left)
