"""When the time to drain is over, whoever still waits is told so in the form of the API; the log has no traceback."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from typing import Any

import httpx
import httpx2
import pytest
from helpers.app import CHAT
from helpers.serving import EXAMPLES, NO_DECODERS, start
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


@pytest.mark.parametrize("is_stream", [True, False])
def test_answers_and_uploads_that_outlast_the_drain_end_with_an_error_of_the_api(is_stream: bool) -> None:
    server = start("--drain-seconds", "0.5", *NO_DECODERS)
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 30_000, "ignore_eos": True}
    host, _, port = server.url.removeprefix("http://").partition(":")
    text = json.dumps({**body, "stream": is_stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    try:
        with (
            socket.create_connection((host, int(port)), timeout=60) as asking,
            socket.create_connection((host, int(port)), timeout=60) as uploading,
        ):
            uploading.sendall(head + text[:9])
            asking.sendall(head + text)
            with httpx.Client(base_url=server.url) as client:
                while "num_requests_running 1.0" not in client.get("/metrics").text:
                    pass
            server.process.send_signal(signal.SIGTERM)
            answer, refusal = (b"".join(iter(lambda one=one: one.recv(65536), b"")) for one in (asking, uploading))
        assert server.end() == 0
    finally:
        server.process.kill()
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert b'"code": "shutting_down"' in refusal
    assert answer.startswith(b"HTTP/1.1 200 " if is_stream else b"HTTP/1.1 503 ")
    assert b'"code": "unavailable"' in answer
    assert (b"data: [DONE]" in answer) == is_stream
    assert "Traceback" not in "\n".join(server.log())
    assert " 499 " not in "\n".join(server.log())


ENDLESS = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "integer"}, "minItems": 4000}}}
ENDLESS |= {"required": ["n"]}


def test_calls_of_agents_have_the_time_to_drain_as_well() -> None:
    server = start("--drain-seconds", "60", "--mcp", "--mcp-root", str(EXAMPLES), *NO_DECODERS)

    async def ask() -> Any:
        async with (
            httpx2.AsyncClient(timeout=60) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode="legacy") as client,
        ):
            arguments = {"media": ["word.png"], "schema": ENDLESS, "max_tokens": 4000}
            asking = asyncio.create_task(client.call_tool("extract", arguments))
            while "num_requests_running 1.0" not in (await http.get(f"{server.url}/metrics")).text:
                assert not asking.done()
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            return await asyncio.wait_for(asking, 60), time.monotonic() - began

    try:
        found, seconds = asyncio.run(ask())
        assert "cut off after 4000 tokens" in found.content[0].text
        assert seconds > 1, "too fast for this test"
        assert server.end() == 0
    finally:
        server.process.kill()
