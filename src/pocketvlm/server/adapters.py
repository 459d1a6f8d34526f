"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: adapters come and go while others answer.

They are there only where the settings name folders from which adapters may be loaded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from pocketvlm.model.adapters.settings import CONFIG, WEIGHTS
from pocketvlm.protocol.adapter_request import parse_load_adapter, parse_unload_adapter
from pocketvlm.server.body import read_json
from pocketvlm.server.errors import HTTPError
from pocketvlm.server.service import Service


async def load_lora_adapter(service: Service, request: Request) -> Response:
    """Read the adapter in a folder and let requests name it as their model."""
    name, path = await read_json(request, parse_load_adapter)
    adapters = service.vlm.vlm.adapters
    if name not in adapters and service.is_taken(name):
        raise HTTPError(400, f"a model of the name {name[:100]!r} is served already", code="invalid_value")
    folder = _inside(path, service.settings.adapter_roots)

    # Of a client that leaves, a load that has begun goes on; one that waits is taken back.
    await service.while_there(request, _in_turn(service, service.vlm.vlm.load_adapter, name, folder))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(service: Service, request: Request) -> Response:
    """Take no more requests for an adapter; those that run end as they began."""
    name = await read_json(request, parse_unload_adapter)
    if name not in service.vlm.vlm.adapters:
        raise HTTPError(404, f"there is no adapter {name[:100]!r}", code="model_not_found")
    await _in_turn(service, service.vlm.vlm.unload_adapter, name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def _in_turn(service: Service, change: Callable[..., None], *args: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(service.loader, change, *args)


def _inside(path: str, roots: tuple[str, ...]) -> Path:
    """The folder, every link followed, that of its files as well; outside the roots there is one answer, whatever is
    there."""
    try:
        found = Path(os.path.realpath(path))
        allowed = [os.path.realpath(root) for root in roots]
        places = (found, *(Path(os.path.realpath(found / file)) for file in (CONFIG, WEIGHTS)))
        if all(any(place.is_relative_to(root) for root in allowed) for place in places) and found.is_dir():
            return found
    except (OSError, ValueError):
        pass
    raise HTTPError(400, "lora_path names no folder that adapters are loaded from", code="invalid_value")
