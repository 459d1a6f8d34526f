"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: adapters come and go while others answer.

They are there only where the settings name folders from which adapters may be loaded.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from pocketvlm.protocol.fields import check, given_fields
from pocketvlm.server.body import read_json
from pocketvlm.server.errors import HTTPError
from pocketvlm.server.service import Service

MAX_ADAPTERS = 64  # by requests: each takes memory


async def load_lora_adapter(service: Service, request: Request) -> Response:
    """Read the adapter in a folder and let requests name it as their model."""
    given = await read_json(request, lambda body: given_fields(body, ("lora_name", "lora_path")))
    name, path = (_text(given, field) for field in ("lora_name", "lora_path"))
    if name in service.names:
        raise HTTPError(400, f"{name[:100]!r} is the model itself", code="invalid_value")
    adapters = service.vlm.vlm.adapters
    if len(adapters) >= MAX_ADAPTERS:
        raise HTTPError(400, f"{len(adapters)} adapters are loaded, at most {MAX_ADAPTERS} are taken")
    folder = _inside(path, service.settings.adapter_roots)
    await service.while_there(request, asyncio.to_thread(service.vlm.vlm.load_adapter, name, folder))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(service: Service, request: Request) -> Response:
    """Take no more requests for an adapter; those that run end as they began."""
    given = await read_json(request, lambda body: given_fields(body, ("lora_name", "lora_int_id")))
    name = _text(given, "lora_name")
    if name not in service.vlm.vlm.adapters:
        raise HTTPError(404, f"there is no adapter {name[:100]!r}", code="model_not_found")
    service.vlm.vlm.unload_adapter(name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _text(given: dict[str, object], field: str) -> str:
    value = check(field, given.get(field, ""), "string")
    if not value:
        raise HTTPError(400, f"the field {field!r} is missing", code="invalid_value")
    return str(value)


def _inside(path: str, roots: tuple[str, ...]) -> Path:
    """The folder, every link followed; outside the roots there is one answer, whatever is there."""
    try:
        found = Path(os.path.realpath(path))
        if any(found.is_relative_to(os.path.realpath(root)) for root in roots) and found.is_dir():
            return found
    except (OSError, ValueError):
        pass
    raise HTTPError(400, "lora_path names no folder that adapters are loaded from", code="invalid_value")
