"""POST /tokenize and /detokenize, as vLLM has them; GET /v1/models."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocketvlm.protocol.tokenize_request import parse_detokenize, parse_tokenize
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service, check_messages


async def tokenize(service: Service, request: Request) -> Response:
    """The ids of a text or of a conversation with its pictures; nothing is generated."""
    asked = await read_json(request, parse_tokenize)
    adapter = service.check_model(asked.model)
    tokenizer = service.vlm.vlm.processor.tokenizer
    if asked.prompt is not None:
        check_messages([{"content": asked.prompt}], exchange_of(request), service.settings.max_text_bytes)
        ids = await asyncio.to_thread(tokenizer.encode_plain, asked.prompt)
    else:
        job = await service.prepare_only(request, asked.messages, asked.options, adapter)
        ids = job.request.input_ids.tolist()
    body: dict[str, Any] = {"count": len(ids), "max_model_len": context_of(service), "tokens": ids}
    if asked.strings:
        names = await asyncio.to_thread(
            lambda: {token: tokenizer.decode([token], skip_special=False) for token in set(ids)}
        )
        body["token_strs"] = [names[token] for token in ids]
    return json_response(body)


async def detokenize(service: Service, request: Request) -> Response:
    """The text of ids, control tokens as they are spelt."""
    tokenizer = service.vlm.vlm.processor.tokenizer
    model, ids = await read_json(request, lambda body: parse_detokenize(body, tokenizer.vocab_size))
    service.check_model(model)
    text = await asyncio.to_thread(tokenizer.decode, ids, False)
    return json_response({"prompt": text})


async def models(service: Service, _request: Request) -> Response:
    """All names of the one model, and its adapters."""
    return JSONResponse({"object": "list", "data": [_card(service, name) for name in service.all_names]})


async def model(service: Service, request: Request) -> Response:
    """The model of this name; a name may hold slashes."""
    name = request.path_params["model"]
    service.check_model(name)
    return JSONResponse(_card(service, name))


def context_of(service: Service) -> int:
    """Most tokens of a prompt and its answer."""
    return service.vlm.vlm.config.text.max_position_embeddings


def _card(service: Service, name: str) -> dict[str, Any]:
    # Of an adapter as vLLM lists it, but without the path of its folder, which is nobody's business.
    adapter = service.vlm.vlm.adapters.get(name) if name not in service.names else None
    origin = {"root": service.names[0]} if adapter is None else {"root": adapter.path.name, "parent": service.names[0]}
    return {
        "id": name,
        "object": "model",
        "created": service.began,
        "owned_by": "pocketvlm",
        **origin,
        "max_model_len": context_of(service),
        "pocketvlm": service.about(),
    }
