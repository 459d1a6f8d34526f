"""Where a server listens, and what it makes of a system that allows few open files: fewer connections, few words."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from helpers.serving import NO_DECODERS, start

from pocketvlm.errors import ConfigError
from pocketvlm.server import listening
from pocketvlm.server.listening import Seldom, listen
from pocketvlm.server.settings import ServerSettings

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from pocketvlm.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of open files; run on Linux or macOS")
def test_connections_beyond_the_open_files_are_refused_and_fill_no_log() -> None:
    server = start(*NO_DECODERS, program=("-c", LIMITED))
    host, _, port = server.url.removeprefix("http://").partition(":")
    try:
        with ExitStack() as stack:
            found = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(60)]
            # The last comes after those before it are refused, whose files are free again.
            assert found[-1].recv(12) == b"HTTP/1.1 503"
        while True:
            try:
                assert server.ask("/ready")[0] == 200
            except (AssertionError, OSError):  # until those have been seen to leave
                continue
            break
        log = server.log()
    finally:
        server.process.terminate()
        assert server.end() == 0
    assert [line for line in log if "the limit of open files is 64" in line]
    assert len(log) < 20
    assert "Traceback" not in "\n".join(log)


def test_what_a_loop_says_again_and_again_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = list[Any]()
    monkeypatch.setattr(asyncio.AbstractEventLoop, "default_exception_handler", lambda _, context: said.append(context))
    loop: Any = asyncio.AbstractEventLoop()
    tell = Seldom()
    full = {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "too many")}
    for _ in range(1000):
        tell(loop, full)
    assert [record.getMessage() for record in caplog.records] == ["no connection can be taken at the moment: too many"]
    other = {"message": "Task exception was never retrieved", "exception": ValueError("x")}
    tell(loop, other)
    tell(loop, other)
    assert said == [other]
    monkeypatch.setattr(listening, "SELDOM_SECONDS", 0.0)
    tell(loop, other)
    assert said == [other, other]


def test_an_empty_host_opens_nothing() -> None:
    with pytest.raises(ConfigError, match="host is empty"):
        listen(ServerSettings(host="", port=0)).close()


def test_a_name_of_ipv6_alone_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, made = [], []
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or found)
    create = socket.create_server

    def create_server(_address: Any, **how: Any) -> socket.socket:
        made.append(how["family"])
        return create(("127.0.0.1", 0))

    monkeypatch.setattr(socket, "create_server", create_server)
    listen(ServerSettings(host="six.example", port=0)).close()
    assert (asked, made) == (["six.example"], [socket.AF_INET6])
