"""A stream of an endpoint becomes deltas, whatever it sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pocketvlm.client.chat import ChatEndpoint
from pocketvlm.errors import ConfigError, EngineError

HELLO = [{"role": "user", "content": "Hello"}]


@contextmanager
def answering(*lines: str, status: int = 200, body: bytes | None = None) -> Iterator[ChatEndpoint]:
    """An endpoint that answers everything with these lines, or with this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(f"{line}\n\n" for line in lines).encode() if body is None else body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield ChatEndpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", timeout=10)
        finally:
            server.shutdown()
            thread.join()


def chunk(delta: dict[str, Any] | None = None, **more: Any) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": more.pop("reason", None)}]
    return f"data: {json.dumps({'choices': choices, **more})}"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_pieces_joined_are_the_answer(name: str) -> None:
    lines = (
        ": a comment",
        chunk({"role": "assistant", "content": ""}),
        chunk({name: "Well."}),
        chunk({"content": "Hel"}),
        f"data: {json.dumps({'choices': [{'index': 1, 'delta': {'content': 'another'}}]})}",
        chunk({"content": "lo"}, reason="length"),
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 2}),
        "data: [DONE]",
    )
    with answering(*lines) as endpoint:
        stream = endpoint.stream(HELLO, {})
        deltas = list(stream.deltas())
    assert "".join(delta.text for delta in deltas) == stream.answer.text == "Hello"
    assert (stream.answer.reasoning, stream.answer.finish_reason) == ("Well.", "length")
    assert (stream.answer.usage.prompt_tokens, stream.answer.usage.completion_tokens) == (3, 2)
    assert stream.answer.timing["total"] >= stream.answer.timing["first_token"] > 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((chunk({"content": "Hel"}),), "ended before"),
        ((chunk({"content": "Hel"}), "data: {"), "no piece"),
        (("data: 3",), "no piece"),
        ((chunk({"content": "Hel"}), 'data: {"error": {"message": "out of\\nmemory"}}'), "out of memory"),
        ((), "ended before"),
    ],
)
def test_a_stream_that_breaks_off_is_a_lost_answer(lines: tuple[str, ...], message: str) -> None:
    with answering(*lines) as endpoint, pytest.raises(EngineError, match=message):
        list(endpoint.stream(HELLO, {}).deltas())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, ConfigError), (422, ConfigError), (401, ConfigError), (429, EngineError), (500, EngineError)],
)
def test_a_refusal_says_what_the_endpoint_said(status: int, kind: type[Exception]) -> None:
    body = json.dumps({"error": {"message": "not today"}}).encode()
    with answering(status=status, body=body) as endpoint, pytest.raises(kind, match="not today"):
        list(endpoint.stream(HELLO, {}).deltas())


@pytest.mark.parametrize("odd", [{"choices": 3}, {"choices": [3]}, {"choices": [{"delta": 3}]}, {"usage": 3}, {}])
def test_chunks_of_another_form_are_left_out(odd: dict[str, Any]) -> None:
    with answering(f"data: {json.dumps(odd)}", chunk({"content": "Hi"}, reason="stop"), "data: [DONE]") as endpoint:
        stream = endpoint.stream(HELLO, {})
        list(stream.deltas())
    assert stream.answer.text == "Hi"
