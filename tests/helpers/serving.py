"""`pocketvlm serve` as a process of its own, for tests that ask it as its users do."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple


class Serving(NamedTuple):
    """A server that takes requests.

    Attributes:
        url: without a slash at its end.
        log: what it writes to stderr: a file, since a pipe that nobody empties would stop it.
    """

    process: subprocess.Popen[str]
    url: str
    log: IO[str]

    def end(self) -> int:
        """Wait for its end; returns the status."""
        assert self.process.stdout is not None
        with self.process.stdout:
            return self.process.wait(60)

    def said(self) -> str:
        """What it wrote to stderr so far."""
        return Path(self.log.name).read_text()

    def ask(
        self, path: str, body: Any = None, *, key: str | None = None, method: str | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        """Status, body and headers of one request: POST with a body (JSON, or bytes as they are), else GET."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)


def start(*options: str, environment: Mapping[str, str] | None = None) -> Serving:
    """Start `pocketvlm serve` on a free port; returns once it is ready."""
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--port", "0", "--json", *options]
    log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 - as long as the server
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment and dict(environment)
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (process.wait(60), Path(log.name).read_text())
    said = json.loads(line)
    assert said["pid"] == process.pid
    return Serving(process, said["url"], log)


@contextmanager
def serving(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """A server within the block, which has to end well at its end."""
    started = start(*options, environment=environment)
    try:
        yield started
    finally:
        started.process.terminate()
        status = started.end()
    assert status == 0
