"""What the client makes of an endpoint that answers before it has heard all."""

from __future__ import annotations

import socket
import threading

import pytest

from pocketvlm.client.http import RefusedError, UnreachableError, opened

LARGE = b"x" * 20_000_000  # more than the buffers of both sides hold


def ask_one_that_says(answer: bytes) -> None:
    """Send a large body to somebody who reads its head alone, says this, and closes the connection."""

    def serve() -> None:
        with listening.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with opened(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", LARGE, timeout=10):
                pass
        finally:
            thread.join()


def test_a_refusal_of_a_body_that_was_not_read_is_heard() -> None:
    body = b'{"error": {"message": "too large"}}'
    head = f"HTTP/1.1 413 Payload Too Large\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(RefusedError, match="too large") as refused:
        ask_one_that_says(head + body)
    assert refused.value.status == 413


def test_a_connection_that_ends_without_a_word_is_no_answer() -> None:
    with pytest.raises(UnreachableError, match="the connection failed"):
        ask_one_that_says(b"")
