"""What is no HTTP, or nearly HTTP, gets one line in the API's form and the end of its connection."""

from __future__ import annotations

import json
import socket
import time
import uuid

import pytest
from helpers.app import CHAT
from helpers.serving import Serving

from pocketvlm.server.heads import MAX_HEADERS

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n".encode()
BODY = b'{"messages": [{"role": "user", "content": "What?"}], "max_tokens": 1}'


def sent(server: Serving, *pieces: bytes) -> bytes:
    """All that comes back until the server ends the connection; each piece after the answer to the one before."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for number, piece in enumerate(pieces):
            if number:
                found += connection.recv(65536)
            connection.sendall(piece)
        while part := connection.recv(65536):
            found += part
    return found


def lines_so_far(server: Serving) -> int:
    """Lines of the log, once all is written of what happened until now: a thread writes them, some time later."""
    mark = uuid.uuid4().hex
    server.ask("/v1/models", headers={"x-request-id": mark})
    while not any(mark in line for line in server.log()):
        time.sleep(0.01)
    return len(server.log())


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01" + bytes(99) + b"\r\n\r\n", b"GET /\r\n\r\n", HEAD + b"Content-Length: -5\r\n\r\n"]
)
def test_what_is_no_http_is_400_in_openais_form(server: Serving, request_: bytes) -> None:
    head, _, body = sent(server, request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_request"


def test_a_body_that_breaks_off_its_framing_is_400(server: Serving) -> None:
    head, _, body = sent(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["message"] == "this is no HTTP request"


def test_nonsense_behind_a_refusal_ends_the_connection_without_a_fault(server: Serving) -> None:
    stranger = HEAD.replace(b"secret", b"other") + b"Transfer-Encoding: chunked\r\n\r\n5\r\naaaaa\r\n"
    before = lines_so_far(server)
    found = sent(server, stranger, b"zz\r\n")
    assert found.count(b"HTTP/1.1 ") == 1
    assert found.startswith(b"HTTP/1.1 401 ")
    assert not [line for line in server.log()[before : lines_so_far(server)] if "Traceback" in line]


def test_a_request_with_two_lengths_is_refused_and_ends_its_connection(server: Serving) -> None:
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    hidden = HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    found = sent(server, hidden + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"two lengths" in found
    assert found.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_answered_in_this_one_and_writes_nothing_into_the_log(
    server: Serving, protocol: str
) -> None:
    before = lines_so_far(server)
    offer = f"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: {protocol}\r\n\r\n"
    assert sent(server, offer.encode()).startswith(b"HTTP/1.1 200 ")
    after = lines_so_far(server)
    assert not [line for line in server.log()[before:after] if "WARNING" in line]


@pytest.mark.parametrize(
    ("method", "path", "status", "hint"),
    [
        ("GET", CHAT, 405, "Use POST."),
        ("GET", "/openapi.json", 404, "Start the server with --docs."),
        ("GET", "/v1/nothing", 404, "there is nothing at /v1/nothing"),
    ],
)
def test_an_address_or_a_method_that_is_not_there_is_told_with_what_is(
    server: Serving, method: str, path: str, status: int, hint: str
) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    head, _, body = sent(server, request.encode()).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["error"]["message"].endswith(hint)
    assert (b"\r\nallow: POST" in head) == (status == 405)


def test_headers_that_are_too_long_are_431_in_however_many_pieces_they_come(server: Serving) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for piece in (HEAD + b"A: ", b"a" * 9000, b"a" * 9000):
            connection.sendall(piece)
            time.sleep(0.2)  # each is read by itself; the last leaves nothing unread, which would reset the connection
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["message"] == f"the headers have more than {MAX_HEADERS} bytes"
