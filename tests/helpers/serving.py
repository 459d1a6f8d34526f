"""`pocketvlm serve` as a process of its own, for tests that ask it as its users do."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class Serving(NamedTuple):
    """A server that takes requests.

    Attributes:
        url: without a slash at its end.
    """

    process: subprocess.Popen[str]
    url: str

    def end(self) -> int:
        """Wait for its end; returns the status."""
        self.process.communicate(timeout=60)
        return self.process.returncode

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
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment and dict(environment)
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    said = json.loads(line)
    assert said["pid"] == process.pid
    return Serving(process, said["url"])


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
