"""GET /api/tags, /api/ps, /api/version and POST /api/show of Ollama's API: what is served, in its form."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import pocketvlm
from pocketvlm.api.vlm import VLM
from pocketvlm.bundle import Manifest
from pocketvlm.model.weight_files import count_parameters, weight_files
from pocketvlm.protocol.fields import check, given_fields
from pocketvlm.protocol.ollama_response import timestamp
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.ollama import check_model
from pocketvlm.server.service import Service

# The Ollama whose API is spoken: clients decide by it what they may ask for.
OLLAMA_VERSION = "0.13.0"
FAMILY = "minicpmv4_6"
CAPABILITIES = ("completion", "vision", "tools", "thinking")
NEVER = "9999-12-31T23:59:59Z"  # when a model that stays loaded is unloaded


async def tags(service: Service, _request: Request) -> Response:
    """The models that can be asked."""
    return json_response(
        {"models": [{**card, "modified_at": timestamp(service.began)} for card in await _cards(service)]}
    )


async def ps(service: Service, _request: Request) -> Response:
    """The models that are loaded: the same."""
    vlm = service.vlm.vlm
    more = {"expires_at": NEVER, "context_length": vlm.config.text.max_position_embeddings}
    on_gpu = vlm.runner.device_type != "cpu"
    return json_response(
        {"models": [{**c, **more, "size_vram": c["size"] if on_gpu else 0} for c in await _cards(service)]}
    )


async def version(_service: Service, _request: Request) -> Response:
    return json_response({"version": OLLAMA_VERSION, "pocketvlm": pocketvlm.__version__})


async def show(service: Service, request: Request) -> Response:
    """What is known of a model."""
    given = await read_json(request, lambda body: given_fields(body, ("model", "name", "verbose")))
    check("verbose", given.get("verbose", False), "boolean")
    check_model(service, check("model", given.get("model", given.get("name", "")), "string"))
    vlm = service.vlm.vlm
    facts = await asyncio.to_thread(_facts, vlm)
    text, vision = vlm.config.text, vlm.config.vision
    info = {
        "general.architecture": FAMILY,
        "general.parameter_count": facts["parameters"],
        f"{FAMILY}.context_length": text.max_position_embeddings,
        f"{FAMILY}.embedding_length": text.hidden_size,
        f"{FAMILY}.block_count": text.num_hidden_layers,
        f"{FAMILY}.vocab_size": text.vocab_size,
        f"{FAMILY}.vision.embedding_length": vision.hidden_size,
        f"{FAMILY}.vision.block_count": vision.num_hidden_layers,
    }
    return json_response(
        {
            "details": facts["details"],
            "model_info": info,
            "capabilities": CAPABILITIES,
            "parameters": "\n".join(f"{name:<30} {value}" for name, value in vlm.defaults.items()),
            "modified_at": timestamp(service.began),
        }
    )


async def _cards(service: Service) -> list[dict[str, Any]]:
    facts = await asyncio.to_thread(_facts, service.vlm.vlm)
    known = {"size": facts["size"], "digest": facts["digest"], "details": facts["details"]}
    cards = [{"name": name, "model": name, **known} for name in map(_tagged, service.names)]
    for adapter in service.vlm.vlm.adapters.values():
        digest = hashlib.sha256(f"{facts['digest']} {adapter.placed.digest}".encode()).hexdigest()
        details = {**facts["details"], "parent_model": service.names[0]}
        name = _tagged(adapter.name)
        cards.append({"name": name, "model": name, **known, "digest": digest, "details": details})
    return cards


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _facts(vlm: VLM) -> dict[str, Any]:
    """Size in bytes, digest, parameters and details; of a model without a directory nothing is known of its files."""
    directory, size, parameters, digest = vlm.directory, 0, 0, ""
    if directory is not None:
        digest = hashlib.sha256(directory.fingerprint.encode()).hexdigest()
        if directory.kind == "bundle":
            size = sum(Manifest.read(directory.path).files.values())
        else:
            size = sum(file.stat().st_size for file in weight_files(directory.path))
            parameters = count_parameters(directory.path)
    details = {
        "parent_model": "",
        "format": "onnx" if directory is not None and directory.kind == "bundle" else "safetensors",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": _short(parameters) if parameters else "",
        "quantization_level": vlm.runner.describe(),
    }
    return {"size": size, "parameters": parameters, "digest": digest, "details": details}


def _short(count: int) -> str:
    """As people write it: 1.3B, 4.2M."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
