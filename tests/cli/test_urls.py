"""A URL without its version, which people give: what commands say of it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pocketvlm import cli


class Nothing(BaseHTTPRequestHandler):
    """Has nothing anywhere."""

    def do_GET(self) -> None:
        body = b'{"error": {"message": "there is nothing here"}}'
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("command", [["chat"], ["bench", "serving"]])
def test_a_url_without_its_version_is_told_what_it_lacks(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert cli.main([*command, "--url", f"http://127.0.0.1:{server.server_port}"]) in (1, 2)
        server.shutdown()
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert "/v1" in errors
