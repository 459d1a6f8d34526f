"""The client of the `mcp` package against /mcp of `pocketvlm serve`."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from helpers.app import App, new_vlm, run
from helpers.serving import Serving
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

import pocketvlm

EXAMPLES = Path(__file__).parents[3] / "examples"
QUESTION = {"media": ["receipt.png"], "question": "What is the total?"}
FORM = {"type": "object", "properties": {"paid": {"type": "boolean"}}, "required": ["paid"]}
FORM |= {"additionalProperties": False}
ENDLESS = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "integer"}, "minItems": 4000}}}
ENDLESS |= {"required": ["n"]}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@asynccontextmanager
async def agent(server: Serving, mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": "Bearer secret"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def said(result: Any) -> str:
    return "\n".join(part.text for part in result.content)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_agents_get_the_models_answers(server: Serving, mode: str) -> None:
    expected = pocketvlm.load().ask(EXAMPLES / "receipt.png", "What is the total?").text

    async def use() -> None:
        async with agent(server, mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["look", "read", "extract"]
            found = await asyncio.gather(*(client.call_tool("look", QUESTION) for _ in range(3)))
            assert {said(one) for one in found} == {expected}
            assert not (await client.call_tool("read", {"image": "word.png"})).is_error
            form = await client.call_tool("extract", {"media": ["receipt.png"], "schema": FORM})
            assert set(form.structured_content) == {"paid"}
            for path in ("../README.md", "/etc/passwd", (EXAMPLES.parent / "README.md").as_uri()):
                refused = await client.call_tool("look", {**QUESTION, "media": [path]})
                assert refused.is_error
                assert "leads to none of the folders" in said(refused)

    asyncio.run(use())


def test_a_call_has_no_more_text_than_any_request(server: Serving) -> None:
    async def use() -> None:
        async with agent(server) as client:
            refused = await client.call_tool("look", {**QUESTION, "question": "x " * 2**20})
            assert refused.is_error
            assert "bytes of text, at most" in said(refused)

    asyncio.run(use())


def metric(server: Serving, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)} (\S+)$", server.ask("/metrics")[1], re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_call_that_is_cancelled_is_given_up(server: Serving, mode: str) -> None:
    before = metric(server, 'pocketvlm:request_success_total{finished_reason="abort"}')

    async def use() -> None:
        async with agent(server, mode) as client:
            arguments = {"media": ["receipt.png"], "schema": ENDLESS, "max_tokens": 15000}
            asking = asyncio.create_task(client.call_tool("extract", arguments))
            while not await asyncio.to_thread(metric, server, "pocketvlm:num_requests_running"):
                assert not asking.done()
                await asyncio.sleep(0.02)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            ends = time.monotonic() + 30
            while metric(server, 'pocketvlm:request_success_total{finished_reason="abort"}') == before:
                assert time.monotonic() < ends, "the engine still works on it"
                await asyncio.sleep(0.02)

    asyncio.run(use())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer secret", "Host": "evil.example"}, 421),
        ({"Authorization": "Bearer secret", "Origin": "https://evil.example"}, 403),
    ],
)
def test_strangers_and_pages_of_others_are_refused(server: Serving, headers: dict[str, str], status: int) -> None:
    accept = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    found = httpx2.post(f"{server.url}/mcp", content=json.dumps(PING), headers={**accept, **headers})
    assert found.status_code == status


def test_nothing_is_at_mcp_unless_it_was_asked_for() -> None:
    async def ask() -> int:
        async with await new_vlm() as vlm:
            return (await App(vlm).client.post("/mcp", json=PING)).status_code

    assert run(ask()) == 404
