"""Rule 1: what requests name is fetched from public addresses alone, and files only from folders that were named."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.app import App, data_url, error_of, new_vlm, png, run


@contextmanager
def listener(answer: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """A port of both loopback addresses, and the beginning of whatever was sent to it."""
    seen: list[bytes] = []
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    sockets = [first]
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            sockets.append(socket.create_server(("::1", port), family=socket.AF_INET6))

    def serve(one: socket.socket) -> None:
        while True:
            try:
                connection, _ = one.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                seen.append(connection.recv(1000))
                connection.sendall(answer)

    threads = [threading.Thread(target=serve, args=(one,)) for one in sockets]
    for thread in threads:
        thread.start()
    try:
        yield port, seen
    finally:
        for one in sockets:
            one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in threads:
            thread.join()


PRIVATE = [
    "http://127.0.0.1:PORT/a.png",
    "http://localhost:PORT/a.png",
    "http://127.1:PORT/a.png",
    "http://2130706433:PORT/a.png",
    "http://0x7f000001:PORT/a.png",
    "http://0177.0.0.1:PORT/a.png",
    "http://0:PORT/a.png",
    "http://0.0.0.0:PORT/a.png",
    "http://[::1]:PORT/a.png",
    "http://[::ffff:127.0.0.1]:PORT/a.png",
    "http://[::ffff:7f00:1]:PORT/a.png",
    "http://[64:ff9b::7f00:1]:PORT/a.png",
    "http://[2002:7f00:1::]:PORT/a.png",
    "http://[::]:PORT/a.png",
    "http://user@127.0.0.1:PORT/a.png",
    "http://example.org\\@127.0.0.1:PORT/a.png",
    "http://example.org@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\\@example.org/",
    "http://127.0.0.1%2f:PORT/",
    "http://①②⑦.0.0.1:PORT/",
    "HTTP://LOCALHOST.:PORT/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http:127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "ftp://127.0.0.1:PORT/a.png",
    "gopher://127.0.0.1:PORT/a.png",
]


def test_rule_1_no_form_of_a_private_address_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda address, **_: connected.append(address))

    async def ask(port: int) -> list[tuple[int, str]]:
        async with await new_vlm() as vlm:
            app = App(vlm)
            urls = [url.replace("PORT", str(port)) for url in PRIVATE]
            found = [await app.look(url) for url in urls]
            parts = [{"type": "video_url", "video_url": {"url": urls[0]}}, {"type": "image", "image": urls[0]}]
            found += [await app.chat([part]) for part in parts]
            found.append(await app.chat([{"type": "video", "video": [urls[0]], "fps": 1}]))
            return [(one.status_code, error_of(one)) for one in found]

    with listener() as (port, seen):
        answers = run(ask(port))
    assert {status for status, _ in answers} == {400}
    assert seen == connected == []


def test_rule_1_a_name_is_resolved_once_and_its_address_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []
    connected: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        if host != "rebinding.example":
            return real(host, *rest, **more)
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8" if len(resolved) == 1 else "127.0.0.1", 80))]

    def connect(address: tuple[str, int], **_: Any) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)

    async def ask() -> tuple[int, str]:
        async with await new_vlm() as vlm:
            found = await App(vlm).look("http://rebinding.example/a.png")
            return found.status_code, error_of(found)

    status, message = run(ask())
    assert (status, resolved, connected) == (400, ["rebinding.example"], ["8.8.8.8"])
    assert "could not be downloaded" in message


def test_rule_1_a_redirect_is_not_followed() -> None:
    async def ask(first: int) -> tuple[int, str]:
        async with await new_vlm() as vlm:
            found = await App(vlm, private_hosts=("127.0.0.1",)).look(f"http://127.0.0.1:{first}/a.png")
            return found.status_code, error_of(found)

    with listener() as (inner, seen):
        answer = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{inner}/b.png\r\nContent-Length: 0\r\n\r\n".encode()
        with listener(answer) as (first, asked):
            status, message = run(ask(first))
    assert (status, len(asked), seen) == (400, 1, [])
    assert "redirects" in message


def test_rule_1_fetching_can_be_switched_off() -> None:
    async def ask(port: int) -> tuple[int, str, int]:
        async with await new_vlm() as vlm:
            app = App(vlm, fetch_urls=False, private_hosts=("127.0.0.1",))
            found = await app.look(f"http://127.0.0.1:{port}/a.png")
            return found.status_code, error_of(found), (await app.look(data_url(png()))).status_code

    with listener() as (port, seen):
        status, message, with_data = run(ask(port))
    assert (status, with_data, seen) == (400, 200, [])
    assert "Nothing is fetched" in message


def test_rule_1_files_are_read_within_named_folders_alone(tmp_path: Path) -> None:
    root, other = tmp_path / "media", tmp_path / "media-of-others"
    for folder in (root, other, root / "inner #1"):
        folder.mkdir()
    for file in (root / "a.png", other / "secret.png", root / "inner #1" / "b.png"):
        file.write_bytes(png())
    (root / "empty.png").touch()
    (root / "out.png").symlink_to(other / "secret.png")
    (root / "out").symlink_to(other)
    (root / "in.png").symlink_to(root / "a.png")
    os.mkfifo(root / "pipe.png")
    good = [f"file://{root}/a.png", f"FILE://localhost{root}/a.png", f"file://{quote(str(root))}/inner%20%231/b.png"]
    good.append(f"file://{root}/in.png")
    bad = [f"file://{other}/secret.png", f"file://{root}/../media-of-others/secret.png", f"file://{root}/out.png"]
    bad += [f"file://{root}/out/secret.png", f"file://{root}/%2e%2e/media-of-others/secret.png", f"file://{root}"]
    bad += [f"file://{root}/a.png%00", f"file://{root}/pipe.png", f"file://{root}/empty.png", f"file://{root}/no.png"]
    bad += ["file:///dev/zero", "file:///etc/passwd", "file://evil.example/a.png", "file:a.png", f"{root}/a.png"]
    bad += [f"file://{root}/inner%20%231", f"file://{root}/a.png?x", f"file:////{root}/../../etc/passwd"]
    bad += ["file:///proc/self/environ", f"file://{root}\\..\\a.png"]

    async def ask() -> tuple[list[Any], list[Any], Any]:
        async with await new_vlm() as vlm:
            app = App(vlm, media_roots=(str(root),))
            read, refused = [await app.look(url) for url in good], [await app.look(url) for url in bad]
            return read, refused, await App(vlm).look(good[0])

    read, refused, without = run(ask())
    assert [one.status_code for one in read] == [200] * len(good)
    assert [one.status_code for one in refused] == [400] * len(bad)
    assert without.status_code == 400
    outside = {error_of(one) for one in refused[:5]}
    assert len(outside) == 1, "what is outside, and whether it is there, can be told apart"
    assert not any(str(other) in error_of(one) or "secret" in error_of(one) for one in refused[:5])


def test_rule_2_limits_of_media_are_settings() -> None:
    async def ask() -> list[str]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_images=2, max_pixels=1000, max_media_bytes=5000)
            picture = data_url(png(20, 30))
            part = {"type": "image_url", "image_url": {"url": picture}}
            assert (await app.chat([part] * 2)).status_code == 200
            found = [
                await app.chat([part] * 3),
                await app.look(data_url(png(40, 40))),
                await app.look(data_url(png(99, 99))),
            ]
            assert [one.status_code for one in found] == [400] * 3
            return [error_of(one) for one in found]

    many, pixels, large = run(ask())
    assert "at most 2" in many
    assert "more than 1000" in pixels
    assert "more than 5000 bytes" in large
