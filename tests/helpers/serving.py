"""`pocketvlm serve` as a process of its own, for tests that ask it as its users do.

One of them, `server` of `conftest.py`, is there for all tests that change nothing of it: to start one takes seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
# Of the one for all: a name that clients have by default, and names that have to be quoted in a path.
KEY, NAMES = "secret", ("reader", "gpt-4o", "team/eye:4b", "people/reader one")
SHARED = ("--api-key", KEY, "--mcp", "--mcp-root", str(EXAMPLES), *(f"--served-model-name={name}" for name in NAMES))

NO_DECODERS = ("--preprocess-processes", "0")  # of servers that see no picture: each takes seconds to start


@dataclass
class Serving:
    """A server that takes requests.

    Attributes:
        url: without a slash at its end.
        errors: where its stderr goes, as long as it runs.
        key: what `ask` says unless it is given another; none where it is empty.
        said: the line that it printed.
    """

    process: subprocess.Popen[str]
    url: str
    errors: Path
    key: str = ""
    _said: str = ""
    said: dict[str, Any] = field(default_factory=dict)

    def log(self) -> list[str]:
        """Lines of its stderr so far."""
        return (self.errors.read_text() if self.errors.exists() else self._said).splitlines()

    def end(self) -> int:
        """Wait for its end; returns the status."""
        self.process.communicate(timeout=60)
        self._said = "\n".join(self.log())
        self.errors.unlink(missing_ok=True)
        return self.process.returncode

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        method: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[int, str, Mapping[str, str]]:
        """Status, body and headers of one request: POST with a body (JSON, or bytes as they are), else GET."""
        key = self.key if key is None else key
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        own = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers={**own, **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)


def start(
    *options: str, environment: Mapping[str, str] | None = None, program: Sequence[str] = ("-m", "pocketvlm.cli")
) -> Serving:
    """Start `pocketvlm serve` on a free port; returns once it is ready."""
    command = [sys.executable, *program, "serve", "--port", "0", "--json", *options]
    # A file: a pipe that nobody reads would be full after some hundred requests.
    descriptor, name = tempfile.mkstemp()
    errors = Path(name)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=descriptor, text=True, env=environment and dict(environment)
    )
    os.close(descriptor)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.communicate()
        text = errors.read_text()
        errors.unlink()
        raise AssertionError(text)
    said = json.loads(line)
    assert said["pid"] == process.pid
    return Serving(process, said["url"], errors, said=said)


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
