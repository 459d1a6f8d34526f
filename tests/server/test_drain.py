"""When the time to drain is over, whoever still waits is told so in the form of the API; the log has no traceback."""

from __future__ import annotations

import json
import signal
import socket

import httpx
import pytest
from helpers.app import CHAT
from helpers.serving import NO_DECODERS, start


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
