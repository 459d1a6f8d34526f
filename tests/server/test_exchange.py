"""What a request holds and has under way ends with it, in whatever order things happen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from helpers.app import CHAT, App, new_vlm, run
from starlette.requests import Request

from pocketvlm.server.app import create_app
from pocketvlm.server.body import read_body
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.settings import ServerSettings
from pocketvlm.server.tracing import Tracing

QUESTION = [{"role": "user", "content": "What?"}]


def exchange(**settings: Any) -> Exchange:
    return Exchange(Load(ServerSettings(**settings)), "POST", CHAT)


def read(pieces: list[bytes], **settings: Any) -> Exchange:
    """The exchange of a request whose body has been read."""
    one = exchange(**settings)
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    one.put_into(scope)
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    asyncio.run(read_body(Request(scope, receive)))
    return one


def test_what_a_request_still_has_under_way_is_given_up_with_it() -> None:
    closed = []

    async def stream() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            closed.append(1)

    async def ask() -> None:
        async with await new_vlm() as vlm:
            one = exchange()
            job = await vlm.prepare(QUESTION, max_tokens=20_000, ignore_eos=True)
            one.add(job)
            one.streams.append(stream())
            await anext(one.streams[0])
            running = asyncio.create_task(anext(vlm.run(job)))
            await running
            await one.end()
            assert closed == [1], "the end of the event loop would close it as well"
            # Its reader still waits, as that of a call whose request has gone.
            while vlm.engine.streams:
                await asyncio.sleep(0.01)
            with pytest.raises(ClientLeftError):
                one.add(job)

    run(ask())


def test_a_body_that_has_arrived_takes_a_place_and_gives_it_back_once() -> None:
    one = read([b'{"a":', b"[1]}"])
    assert (one.load.in_flight, one.load.held_bytes) == (1, 9)
    for _ in range(2):
        asyncio.run(one.end())
        assert (one.load.in_flight, one.load.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ([b"1" * 1000, b"1" * 1000], 413, "more than 1024 bytes"),
        ([b"[" * 9 + b"]" * 9], 400, "more than 8 brackets in brackets"),
        ([b"[" + b"1," * 200 + b"1]"], 400, "more than 100 commas and brackets"),
    ],
)
def test_bodies_over_a_limit_are_refused_before_they_are_parsed(pieces: list[bytes], status: int, words: str) -> None:
    with pytest.raises(HTTPError, match=words) as refused:
        read(pieces, max_body_bytes=1024, max_json_depth=8, max_json_values=100)
    assert refused.value.status == status


def test_all_texts_of_messages_count_wherever_they_stand() -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "b" * 2000}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "c" * 2000}}]}

    async def ask() -> list[str]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_text_bytes=1000)
            bodies = [{"messages": [*QUESTION, one, *QUESTION]} for one in (thought, called)]
            return [(await app.client.post(CHAT, json=body)).text for body in bodies]

    for text in run(ask()):
        assert "at most 1000 are taken" in text


def test_the_texts_of_tools_count_too() -> None:
    parameters = {"type": "object", "properties": {"p" * 2000: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}

    async def ask() -> tuple[int, str]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_text_bytes=1000)
            response = await app.client.post(CHAT, json={"messages": QUESTION, "tools": [tool]})
            return response.status_code, response.json()["error"]["message"]

    status, message = run(ask())
    assert status == 400
    assert re.fullmatch(r"the messages and tools have 20\d\d bytes of text, at most 1000 are taken", message)


def test_bodies_for_agents_are_read_within_the_same_limits() -> None:
    async def ask() -> tuple[int, str]:
        async with await new_vlm() as vlm:
            response = await App(vlm, mcp=True, max_json_depth=8).client.post("/mcp", content=b"[" * 9 + b"]" * 9)
            return response.status_code, response.text

    status, text = run(ask())
    assert (status, "more than 8 brackets in brackets" in text) == (400, True)


def test_a_trace_that_fails_costs_no_answer() -> None:
    class Failing(Tracing):
        def __init__(self) -> None: ...

        def ended(self, exchange: Exchange) -> None:
            raise RuntimeError(exchange.path)

    async def ask() -> int:
        async with await new_vlm() as vlm:
            app = create_app(vlm, ServerSettings(), tracing=Failing())
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return (await client.post(CHAT, json={"messages": QUESTION, "max_tokens": 2}, timeout=60)).status_code

    assert run(ask()) == 200
