"""Rules 6 and 8 under load: what is too much is refused at once, what is too slow is cut off, what is given up ends."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from helpers.app import CHAT, App, data_url, new_vlm, png, run
from helpers.serving import NO_DECODERS, Serving, serving
from uvicorn.server import ServerState

from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.processing import media_workers
from pocketvlm.processing.media_workers import fetching_first
from pocketvlm.server.app import create_app
from pocketvlm.server.connection import connections
from pocketvlm.server.listening import listen
from pocketvlm.server.settings import ServerSettings

SLOW = {"max_tokens": 20_000, "ignore_eos": True}


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it has not come to that")


def fetching(body: bytes) -> Callable[[str, object, Callable[[int], None]], bytes]:
    """In place of what fetches: every address has this."""

    def fetch(_url: str, _limits: object, hold: Callable[[int], None]) -> bytes:
        hold(len(body))
        return body

    return fetch


def is_idle(vlm: AsyncVLM) -> bool:
    metrics = vlm.engine.engine.metrics
    return (
        not vlm.engine.streams and metrics.value("num_requests_running") == metrics.value("num_requests_waiting") == 0
    )


def test_pieces_of_a_response_do_not_wait_for_each_other() -> None:
    async def nodelay() -> int:
        async with await new_vlm() as vlm:
            settings = ServerSettings(port=0)
            config = uvicorn.Config(create_app(vlm, settings), http=connections(settings))
            config.load()
            made = []

            def protocol() -> asyncio.Protocol:
                made.append(config.http_protocol_class(config=config, server_state=ServerState(), app_state={}))  # type: ignore[call-arg, operator]
                return made[0]

            with listen(settings) as sock:
                server = await asyncio.get_running_loop().create_server(protocol, sock=sock)
                _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
                await until(lambda: made and made[0].transport)
                held = made[0].transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                writer.close()
                server.close()
                return held

    assert run(nodelay())


def test_a_connection_whose_client_has_left_already_is_no_fault() -> None:
    # No option of TCP can be set on it, as on macOS where a client has reset the connection.
    gone = socket.socket(socket.AF_UNIX)

    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info = lambda name, default=None: gone if name == "socket" else default

    async def is_timed() -> bool:
        async with await new_vlm() as vlm:
            settings = ServerSettings(port=0)
            config = uvicorn.Config(create_app(vlm, settings), http=connections(settings))
            config.load()
            made: Any = config.http_protocol_class
            protocol = made(config=config, server_state=ServerState(), app_state={})
            protocol.connection_made(transport)
            timed = protocol._head_timer is not None
            protocol.connection_lost(None)
            return timed

    with gone:
        assert run(is_timed())


class Unread:
    """A transport with what a client has not read: so many bytes at each look."""

    def __init__(self, *sizes: int) -> None:
        self.sizes, self.looks, self.is_aborted = sizes, 0, False

    def get_write_buffer_size(self) -> int:
        self.looks += 1
        return self.sizes[self.looks - 1]

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("begin", ["pause_writing", "on_response_complete"])
@pytest.mark.parametrize(("sizes", "looks"), [((90, 90, 80), 2), ((90, 80, 70, 60, 60, 50), 5)])
def test_a_client_that_reads_slowly_is_waited_for_and_one_that_reads_nothing_is_not(
    begin: str, sizes: tuple[int, ...], looks: int
) -> None:
    transport = Unread(*sizes)
    asyncio.run(abort_of(transport, begin))
    assert transport.looks == looks


async def abort_of(transport: Any, begin: str, **settings: float) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None: ...

    config = uvicorn.Config(app, http=connections(ServerSettings(send_seconds=0.1, **settings)))  # type: ignore[arg-type]
    config.load()
    made: Any = config.http_protocol_class
    protocol = made(config=config, server_state=ServerState(), app_state={})
    protocol.timeout_keep_alive = 0.1
    protocol.transport, protocol.flow = transport, Mock()
    getattr(protocol, begin)()
    await until(lambda: transport.is_aborted)


def test_a_response_that_is_complete_is_not_read_for_ever() -> None:
    transport = Unread(*range(1000, 0, -1))
    asyncio.run(abort_of(transport, "on_response_complete", request_seconds=0.25))
    assert 2 <= transport.looks <= 10


def test_a_full_queue_is_429_before_the_body_is_read() -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"{}"

    async def ask() -> tuple[httpx.Response, bool]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_in_flight=2)
            running = [asyncio.create_task(app.chat(**SLOW)) for _ in range(2)]
            await until(lambda: len(vlm.engine.streams) == 2)
            refused = await app.client.post(CHAT, content=body())
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await until(lambda: is_idle(vlm))
            return refused, (await app.chat()).status_code == 200

    refused, again = run(ask())
    assert (refused.status_code, read) == (429, [])
    assert int(refused.headers["Retry-After"]) > 0
    assert json.loads(refused.text)["error"]["code"] == "queue_full"
    assert again, "what was given up still takes the place of others"


def test_bodies_and_pictures_together_have_a_limit() -> None:
    """What has no room beside others may be tried again; what never will have is refused."""

    async def ask() -> list[int]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_held_bytes=2**20, max_body_bytes=2**20)
            large, small = data_url(png(500, 500)), data_url(png(30, 30))  # the first is about 1 MB in base64
            alone = [(await app.look(large)).status_code, (await app.look(small)).status_code]
            load = app.app.state.guard.load
            load.held_bytes += 2**20 - 1000
            beside = (await app.look(small)).status_code
            load.held_bytes -= 2**20 - 1000
            return [*alone, beside, (await app.look(small)).status_code, load.held_bytes]

    assert run(ask()) == [400, 200, 429, 200, 0]


def test_downloads_count_while_they_are_decoded_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(path: str, form: Any) -> tuple[list[int], int]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_held_bytes=2**20, max_body_bytes=2**20)
            vlm.vlm.processor.encode = fetching_first(vlm.vlm.processor.encode)
            urls = [f"http://example.org/{i}" for i in range(6)]  # of some 250 KB each
            found = [(await app.client.post(path, json=form(urls[:count]))).status_code for count in (6, 1)]
            load = app.app.state.guard.load
            await until(lambda: not load.held_bytes)
            return found, load.held_bytes

    def chat(urls: list[str]) -> Any:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        options = {"max_slice_nums": 1}
        return {
            "messages": [{"role": "user", "content": parts}], "max_tokens": 1, "mm_processor_kwargs": options
        }  # fmt: skip

    picture = png(288, 288)
    assert 2**18 > len(picture) > 2**20 / 6
    monkeypatch.setattr(media_workers, "fetch", fetching(picture))
    assert run(ask(CHAT, chat)) == ([400, 200], 0)
    assert run(ask("/v1/view_plan", lambda urls: {"images": urls})) == ([400, 200], 0)


def test_a_document_whose_download_has_no_room_may_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[int]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_held_bytes=2**20, max_body_bytes=2**20)
            vlm.vlm.processor.encode = fetching_first(vlm.vlm.processor.encode)
            load, body, found = app.app.state.guard.load, {"document": "http://example.org/a"}, list[int]()
            for others in (2**20 - 100_000, 0):
                load.held_bytes += others
                found.append((await app.client.post("/v1/pages", json=body)).status_code)
                load.held_bytes -= others
            return found

    picture = png(288, 288)
    monkeypatch.setattr(media_workers, "fetch", fetching(picture))
    assert run(ask()) == [429, 200]


def test_hosts_that_are_slow_hold_up_nobody_who_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def fetch(_url: str, _limits: object, _hold: object) -> bytes:
        gate.wait(60)
        return png(60, 40)

    monkeypatch.setattr(media_workers, "fetch", fetch)

    async def ask() -> list[int]:
        async with await new_vlm(workers=2) as vlm:
            app = App(vlm)
            vlm.vlm.processor.encode = fetching_first(vlm.vlm.processor.encode)
            waiting = [asyncio.create_task(app.look(f"http://example.org/{i}", max_tokens=1)) for i in range(4)]
            await asyncio.sleep(0.1)
            try:
                answered = await asyncio.wait_for(app.chat(), 30)
                assert not any(one.done() for one in waiting)
            finally:
                gate.set()
            return [answered.status_code, *[(await one).status_code for one in waiting]]

    assert run(ask()) == [200] * 5


def test_the_time_of_a_request_is_over_while_it_waits_prepares_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[httpx.Response]:
        async with await new_vlm() as vlm:
            app = App(vlm, request_seconds=0.3)
            running = await app.chat(**SLOW)
            prepare, go_on = vlm.vlm.prepare, threading.Event()
            monkeypatch.setattr(vlm.vlm, "prepare", lambda *given: go_on.wait(60) and prepare(*given))
            preparing = await app.chat()
            go_on.set()
            monkeypatch.undo()
            await until(lambda: is_idle(vlm))
            return [running, preparing, await app.chat()]

    *late, good = run(ask())
    for one in late:
        assert one.status_code == 504
        assert json.loads(one.text)["error"]["code"] == "deadline_exceeded"
    assert good.status_code == 200


def test_a_stream_whose_time_is_over_says_so() -> None:
    async def ask() -> str:
        async with await new_vlm() as vlm:
            return (await App(vlm, request_seconds=1).chat(stream=True, **SLOW)).text

    events = run(ask()).split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert events[-2] == "data: [DONE]"


def test_a_failed_step_is_500_and_the_next_request_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> tuple[httpx.Response, httpx.Response, int]:
        async with await new_vlm() as vlm:
            app = App(vlm)

            def fail(_plan: object) -> None:
                raise RuntimeError("secret words of a library")

            with monkeypatch.context() as patch:
                patch.setattr(vlm.engine.engine.executor, "run", fail)
                failed = await app.chat()
            return failed, await app.chat(), (await app.client.get("/health")).status_code

    failed, good, health = run(ask())
    assert (failed.status_code, good.status_code, health) == (500, 200, 200)
    assert "secret" not in failed.text


def test_when_the_engine_has_ended_health_is_503_and_so_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[int]:
        async with await new_vlm() as vlm:
            app = App(vlm)

            def end() -> None:
                raise SystemExit

            monkeypatch.setattr(vlm.engine.engine, "step", end)
            first = await app.chat()
            await until(lambda: not vlm.engine.is_alive)
            others = [await app.client.get("/health"), await app.client.get("/ready"), await app.chat()]
            return [first.status_code, *(one.status_code for one in others)]

    assert run(ask()) == [500, 503, 503, 503]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Serving]:
    with serving(
        "--header-seconds", "0.5", "--upload-seconds", "0.5", "--send-seconds", "0.5", "--max-connections", "8",
        "--log-format", "json", *NO_DECODERS,
    ) as started:  # fmt: skip
        yield started


def connect(server: Serving) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def all_of(connection: socket.socket) -> bytes:
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "beginning",
    [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n", b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 9],
)
def test_a_head_that_does_not_come_is_cut_off(impatient: Serving, beginning: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(beginning)
        assert all_of(connection) == b""


def test_an_answer_may_take_longer_than_a_head_may(impatient: Serving) -> None:
    body = {"messages": [{"role": "user", "content": "What?"}], "ignore_eos": True}
    for tokens in (50 * 2**i for i in range(8)):
        began = time.monotonic()
        assert impatient.ask(CHAT, {**body, "max_tokens": tokens})[0] == 200
        if time.monotonic() - began > 0.6:
            return
    pytest.fail("this machine is too fast for this test")


def test_a_slow_body_is_408(impatient: Serving) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_the_rest_of_a_refused_body_does_not_keep_the_connection(impatient: Serving) -> None:
    with connect(impatient) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
        connection.settimeout(0.1)
        for _ in range(100):
            try:
                connection.sendall(b" ")
                if not connection.recv(1000):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("it takes whatever comes")


def test_large_heads_are_refused(impatient: Serving) -> None:
    with connect(impatient) as connection:
        with suppress(OSError):
            connection.sendall(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 100_000 + b"\r\nConnection: close\r\n\r\n"
            )
        assert all_of(connection)[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"")
    assert impatient.ask(f"/health?{'a' * 10_000}")[0] == 414


def test_more_connections_than_allowed_are_503_and_the_others_go_on(impatient: Serving) -> None:
    for _ in range(20):  # connections of the tests before may still be closing
        held = [connect(impatient) for _ in range(8)]
        with suppress(ConnectionError):
            held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if held[-1].recv(1000).startswith(b"HTTP/1.1 200 "):
                break
        for one in held:
            one.close()
        time.sleep(0.1)
    else:
        pytest.fail("one too few are allowed")
    try:
        with connect(impatient) as one_more:
            answer = all_of(one_more)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in answer
    finally:
        for one in held:
            one.close()
    time.sleep(0.1)
    assert impatient.ask("/health")[0] == 200


def test_a_reader_that_stalls_is_cut_off_and_its_request_given_up(impatient: Serving) -> None:
    much = {"logprobs": True, "top_logprobs": 20, "n": 8, "stream": True, **SLOW}
    body = json.dumps({"messages": [{"role": "user", "content": "a"}], **much}).encode()
    with connect(impatient) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        for _ in range(600):
            text = impatient.ask("/metrics")[1]
            if 'request_success_total{finished_reason="abort"} ' in text:
                break
            time.sleep(0.05)
        else:
            pytest.fail("it still runs")
    assert "pocketvlm:num_requests_running 0.0" in impatient.ask("/metrics")[1]


def test_every_request_is_one_line_of_the_log_without_its_content(impatient: Serving) -> None:
    body = {"messages": [{"role": "user", "content": "my secret"}], "max_tokens": 1}
    _, _, headers = impatient.ask(CHAT, body)
    for _ in range(100):
        lines = [line for line in impatient.log() if headers["x-request-id"] in line]
        if lines:
            break
        time.sleep(0.02)
    (line,) = lines
    facts = json.loads(line)
    assert (facts["path"], facts["status"], facts["finish_reason"]) == (CHAT, 200, "length")
    assert facts["answer_tokens"] == 1
    assert facts["seconds"] > 0
    assert "secret" not in "".join(impatient.log())
