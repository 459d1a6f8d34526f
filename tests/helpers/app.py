"""The application of a server without its socket, for tests that have to reach into its process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.server.app import create_app
from pocketvlm.server.settings import ServerSettings

T = TypeVar("T")
CHAT = "/v1/chat/completions"


class App:
    """Asks an application of nano."""

    def __init__(self, vlm: AsyncVLM, **settings: Any) -> None:
        self.vlm = vlm
        self.settings = ServerSettings(**settings)
        vlm.vlm.processor.restrict(self.settings.media_limits)
        self.app = create_app(vlm, self.settings)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)

    def routes(self) -> list[tuple[str, str]]:
        """Path and method of each."""
        found = [(route, method) for route in self.app.routes for method in getattr(route, "methods", None) or ("GET",)]
        return [(route.path, method) for route, method in found if "{" not in route.path]

    async def chat(self, content: Any = "What?", *, key: str = "", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.client.post(CHAT, json={"messages": messages, "max_tokens": 4, **fields}, headers=headers)

    async def look(self, url: Any, **fields: Any) -> httpx.Response:
        return await self.chat([{"type": "image_url", "image_url": {"url": url}}], **fields)


def run(test: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(test, 100))


async def new_vlm(**options: Any) -> AsyncVLM:
    return AsyncVLM(pocketvlm.load("nano", runtime="torch"), **options)


def error_of(response: httpx.Response) -> str:
    """The message of an error that has OpenAI's form."""
    return str(json.loads(response.text)["error"]["message"])


def png(height: int = 20, width: int = 30, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(body: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"
