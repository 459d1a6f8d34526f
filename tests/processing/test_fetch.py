"""Fetching, on the loopback interface only, which the limits have to allow by name."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.fetch import fetch, is_public
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_image, probe_size
from pocketvlm.views import Size

LOCAL = MediaLimits(max_bytes=50_000, connect_seconds=0.3, total_seconds=0.6, private_hosts=("127.0.0.1", "localhost"))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(10, 20, 3)).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers))  # type: ignore[attr-defined]
        getattr(self, self.path.strip("/").partition("?")[0].replace("-", "_"))()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length is None or length >= 0:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def picture(self) -> None:
        self.answer(png())

    def without_length(self) -> None:
        self.answer(png(), length=-1)

    def redirect(self) -> None:
        self.answer(b"", status=302, Location="/picture")

    def missing(self) -> None:
        self.answer(b"secret words of the server", status=404)

    def empty(self) -> None:
        self.answer(b"")

    def announced(self) -> None:
        self.answer(b"", length=10**9)

    def endless(self) -> None:
        self.answer(b"", length=-1)
        try:
            while True:
                self.wfile.write(bytes(10_000))
        except OSError:
            pass

    def cut(self) -> None:
        self.answer(png(), length=10_000)

    def compressed(self) -> None:
        self.answer(png(), Content_Encoding="gzip")

    def silent(self) -> None:
        self.server.stop.wait(3)  # type: ignore[attr-defined]

    def drip(self) -> None:
        self.answer(b"", length=-1)
        try:
            while not self.server.stop.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
        except OSError:
            pass

    def drip_headers(self) -> None:
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.stop.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
        except OSError:
            pass

    def nonsense(self) -> None:
        self.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.stop = [], threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stop.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def base(server: ThreadingHTTPServer) -> str:
    server.seen.clear()  # type: ignore[attr-defined]
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("path", ["picture", "without-length"])
def test_a_picture_is_fetched(base: str, path: str) -> None:
    assert fetch(f"{base}/{path}", LOCAL) == png()
    assert load_image(f"{base}/{path}", LOCAL).shape == (10, 20, 3)
    assert probe_size(f"{base}/{path}", LOCAL) == Size(height=10, width=20)


def test_bytes_are_counted_as_they_arrive(base: str) -> None:
    """A host that never ends a body takes memory all the while."""
    counted = list[int]()

    def hold(count: int) -> None:
        counted.append(count)
        if sum(counted) > 20_000:
            raise MemoryError

    with pytest.raises(MemoryError):
        fetch(f"{base}/endless", LOCAL, hold)
    assert sum(counted) <= 20_000 + 65_536
    counted.clear()
    assert fetch(f"{base}/picture", LOCAL, hold) == png()
    assert sum(counted) == len(png())


def test_request_names_the_host_and_keeps_the_query(server: ThreadingHTTPServer, base: str) -> None:
    fetch(f"{base}/picture?a=1&b=%20", LOCAL)
    path, headers = server.seen[-1]  # type: ignore[attr-defined]
    assert path == "/picture?a=1&b=%20"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("redirect", "redirects"),
        ("missing", "status 404"),
        ("empty", "is empty"),
        ("announced", "more than 50000 bytes"),
        ("endless", "more than 50000 bytes"),
        ("cut", "before its last byte"),
        ("compressed", "compressed"),
        ("silent", "in time"),
        ("drip", "in time"),
        ("drip-headers", "in time"),
        ("nonsense", "could not be downloaded"),
    ],
)
def test_hostile_and_broken_hosts_get_one_line(base: str, path: str, message: str) -> None:
    with pytest.raises(MediaError, match=message) as error:
        fetch(f"{base}/{path}?token=hidden", LOCAL)
    assert "secret" not in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("path", ["picture", "without-length"])
def test_a_body_of_exactly_as_many_bytes_as_allowed_is_accepted(base: str, path: str) -> None:
    size = len(png())
    assert fetch(f"{base}/{path}", replace(LOCAL, max_bytes=size)) == png()
    with pytest.raises(MediaError, match=f"more than {size - 1} bytes"):
        fetch(f"{base}/{path}", replace(LOCAL, max_bytes=size - 1))


def test_redirect_target_is_never_asked_for(server: ThreadingHTTPServer, base: str) -> None:
    with pytest.raises(MediaError):
        fetch(f"{base}/redirect", LOCAL)
    assert [path for path, _ in server.seen] == ["/redirect"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0", "2130706433", "0x7f000001", "[::1]", "0.0.0.0"]
)
def test_private_addresses_are_refused_by_default(server: ThreadingHTTPServer, host: str) -> None:
    server.seen.clear()  # type: ignore[attr-defined]
    with pytest.raises(MediaError, match=r"private address|unknown|malformed"):
        fetch(f"http://{host}:{server.server_port}/picture", MediaLimits())
    assert server.seen == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("nonsense", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def test_one_private_address_among_public_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(MediaError, match="private address"):
        fetch("http://rebinding.example/a.png", MediaLimits())


def test_the_name_is_resolved_once_and_the_checked_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []
    connected: list[str] = []

    def resolve(host: str, *_: object, **__: object) -> list[object]:
        resolved.append(host)
        address = "8.8.8.8" if len(resolved) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    def connect(address: tuple[str, int], **_: object) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(MediaError, match="could not be downloaded"):
        fetch("https://rebinding.example/a.png", MediaLimits())
    assert (resolved, connected) == (["rebinding.example"], ["8.8.8.8"])


@pytest.mark.parametrize(
    "url",
    [
        "http://user@example.org/a.png",
        "http://user:word@example.org/a.png",
        "http://example.org\\@127.0.0.1/a.png",
        "http://example.org/a b.png",
        "http://exam\tple.org/a.png",
        "http://example.org/\r\nHost: inner",
        "http:///a.png",
        "http://",
        "http://example.org:0/a.png",
        "http://example.org:99999/a.png",
        "http://[::1/a.png",
        "http://exa%6dple.org/a.png",
        "http://" + "a" * 300 + ".org/a.png",
    ],
)
def test_malformed_urls_are_refused_before_anything_is_resolved(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("resolved"))
    with pytest.raises(MediaError, match="malformed"):
        load_image(url)


def test_plain_text_behind_tls_is_refused(base: str) -> None:
    with pytest.raises(MediaError, match=r"could not be downloaded|in time"):
        fetch(base.replace("http:", "https:") + "/picture", LOCAL)


def test_no_thread_is_left_behind(base: str) -> None:
    for path in ("picture", "drip", "missing"):
        with contextlib.suppress(MediaError):
            fetch(f"{base}/{path}", LOCAL)
    watchdogs = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert watchdogs == []
