"""A stand-in for an OpenAI-compatible endpoint on 127.0.0.1, which misbehaves on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: (status, headers, body) of an answer, for the request's number and its JSON.
Script = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]


def completion(text: object, **usage: int) -> tuple[int, dict[str, str], bytes]:
    """A chat completion that says `text`."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    return 200, {}, json.dumps(body).encode()


class Server:
    """What was asked so far, and where."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.max_at_once = 0
        self.lock = threading.Lock()


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """A server that answers POST /v1/chat/completions as `script` says, and everything else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.requests)
                server.requests.append(asked)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.at_once += 1
                server.max_at_once = max(server.max_at_once, server.at_once)
            found = self.path == "/v1/chat/completions"
            status, headers, body = script(number, asked) if found else (404, {}, b"")
            with server.lock:
                server.at_once -= 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # clients that time out are part of the tests
                super().handle()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
