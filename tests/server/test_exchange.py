"""What a request holds and has under way ends with it, in whatever order things happen."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from helpers.app import CHAT, App, data_url, error_of, new_vlm, png, run
from mcp import Client
from starlette.requests import Request

from pocketvlm.errors import EngineError, PromptError, QueueFullError
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.mcp_server.server import make_server
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.mcp_server.tools import Call
from pocketvlm.processing.abandonment import check_wanted
from pocketvlm.server import agents
from pocketvlm.server.app import create_app
from pocketvlm.server.body import read_body
from pocketvlm.server.errors import ClientLeftError, HTTPError
from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.service import Service
from pocketvlm.server.settings import ServerSettings
from pocketvlm.server.tracing import Tracing

QUESTION = [{"role": "user", "content": "What?"}]


def exchange(**settings: Any) -> Exchange:
    return Exchange(Load(ServerSettings(**settings)), "POST", CHAT)


def read(pieces: list[bytes], **settings: Any) -> Exchange:
    """The exchange of a request whose body has been read."""
    one = exchange(**settings)
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    one.put_into(scope)
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    asyncio.run(read_body(Request(scope, receive)))
    return one


def test_what_a_request_still_has_under_way_is_given_up_with_it() -> None:
    closed = []

    async def stream() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            closed.append(1)

    async def ask() -> None:
        async with await new_vlm() as vlm:
            one = exchange()
            job = await vlm.prepare(QUESTION, max_tokens=20_000, ignore_eos=True)
            one.add(job)
            one.streams.append(stream())
            await anext(one.streams[0])
            running = asyncio.create_task(anext(vlm.run(job)))
            await running
            await one.end()
            assert closed == [1], "the end of the event loop would close it as well"
            # Its reader still waits, as that of a call whose request has gone.
            while vlm.engine.streams:
                await asyncio.sleep(0.01)
            with pytest.raises(ClientLeftError):
                one.add(job)

    run(ask())


def test_a_body_that_has_arrived_takes_a_place_and_gives_it_back_once() -> None:
    one = read([b'{"a":', b"[1]}"])
    assert (one.load.in_flight, one.load.held_bytes) == (1, 9)
    for _ in range(2):
        asyncio.run(one.end())
        assert (one.load.in_flight, one.load.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ([b"1" * 1000, b"1" * 1000], 413, "more than 1024 bytes"),
        ([b"[" * 9 + b"]" * 9], 400, "more than 8 brackets in brackets"),
        ([b"[" + b"1," * 200 + b"1]"], 400, "more than 100 commas and brackets"),
    ],
)
def test_bodies_over_a_limit_are_refused_before_they_are_parsed(pieces: list[bytes], status: int, words: str) -> None:
    with pytest.raises(HTTPError, match=words) as refused:
        read(pieces, max_body_bytes=1024, max_json_depth=8, max_json_values=100)
    assert refused.value.status == status


@pytest.mark.parametrize("path", [CHAT, "/v1/view_plan"])
def test_what_a_thread_still_holds_counts_after_its_client_has_left(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_arguments: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        raise EngineError("the end of this test")

    monkeypatch.setattr("pocketvlm.server.view_plan.plan_pictures", slow)
    body = json.dumps({"images": [data_url(png())]} if path != CHAT else {"messages": QUESTION}).encode()

    async def ask() -> None:
        async with await new_vlm(workers=1) as vlm:
            monkeypatch.setattr(vlm.vlm, "prepare", slow)
            app = App(vlm)

            async def held() -> int:
                found = re.search(r"^pocketvlm:http_held_bytes (\S+)$", (await app.client.get("/metrics")).text, re.M)
                assert found is not None
                return int(float(found[1]))

            asking = [asyncio.create_task(app.client.post(path, content=body)) for _ in range(3)]
            while not begun.is_set() or await held() < 3 * len(body):
                await asyncio.sleep(0.01)
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            # The others waited for the thread, and wait for nothing any more.
            assert await held() == len(body)
            go_on.set()
            while await held():
                await asyncio.sleep(0.01)

    run(ask())


def test_an_application_of_another_library_that_fails_is_an_error_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_arguments: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("mcp.server.streamable_http_manager.StreamableHTTPSessionManager.handle_request", failing)

    async def ask() -> httpx.Response:
        async with await new_vlm() as vlm:
            return await App(vlm, mcp=True).client.post("/mcp", json={})

    found = run(ask())
    assert found.status_code == 500
    assert "secret" not in error_of(found)


def test_a_call_of_an_agent_that_takes_too_long_to_prepare_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow(*_arguments: Any) -> None:
        assert go_on.wait(60)
        raise EngineError("the end of this test")

    async def ask() -> Any:
        async with await new_vlm(workers=1) as vlm:
            monkeypatch.setattr(vlm.vlm, "prepare", slow)
            service = Service(vlm, ServerSettings(request_seconds=0.2), ("reader",))
            caller = agents.HTTPCaller(service, Exchange(Load(service.settings), "POST", "/mcp"))
            sources = Sources((), service.settings.media_limits)
            async with Client(make_server(vlm, sources, lambda _request: caller)) as client:
                found = await client.call_tool("look", {"media": [data_url(png())], "question": "What?"})
            go_on.set()
            return found

    found = run(ask())
    assert found.is_error
    assert found.content[0].text == "the deadline has passed"


def test_the_files_of_a_call_of_an_agent_are_held_and_refused_where_there_is_no_room() -> None:
    async def ask() -> None:
        async with await new_vlm() as vlm:
            service = Service(vlm, ServerSettings(max_held_bytes=2**20, max_body_bytes=2**20), ("reader",))
            one = Exchange(Load(service.settings), "POST", "/mcp")
            caller = agents.HTTPCaller(service, one)
            caller.check(Call("look", [], {}, file_bytes=2**20))
            assert one.load.held_bytes == 2**20
            with pytest.raises(PromptError, match="take more than 1048576 bytes"):
                caller.check(Call("look", [], {}, file_bytes=1))
            other = agents.HTTPCaller(service, Exchange(one.load, "POST", "/mcp"))
            with pytest.raises(QueueFullError, match="take all memory"):
                other.check(Call("look", [], {}, file_bytes=1))
            await one.end()
            assert one.load.held_bytes == 0
            with pytest.raises(EngineError, match="has ended"):
                caller.check(Call("look", [], {}, file_bytes=1))
            assert one.load.held_bytes == 0

    run(ask())


def test_all_texts_of_messages_count_wherever_they_stand() -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "b" * 2000}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "c" * 2000}}]}

    async def ask() -> list[str]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_text_bytes=1000)
            bodies = [{"messages": [*QUESTION, one, *QUESTION]} for one in (thought, called)]
            return [(await app.client.post(CHAT, json=body)).text for body in bodies]

    for text in run(ask()):
        assert "at most 1000 are taken" in text


def test_the_texts_of_tools_count_too() -> None:
    parameters = {"type": "object", "properties": {"p" * 2000: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}

    async def ask() -> tuple[int, str]:
        async with await new_vlm() as vlm:
            app = App(vlm, max_text_bytes=1000)
            response = await app.client.post(CHAT, json={"messages": QUESTION, "tools": [tool]})
            return response.status_code, response.json()["error"]["message"]

    status, message = run(ask())
    assert status == 400
    assert re.fullmatch(r"the messages and tools have 20\d\d bytes of text, at most 1000 are taken", message)


def test_bodies_for_agents_are_read_within_the_same_limits() -> None:
    async def ask() -> tuple[int, str]:
        async with await new_vlm() as vlm:
            response = await App(vlm, mcp=True, max_json_depth=8).client.post("/mcp", content=b"[" * 9 + b"]" * 9)
            return response.status_code, response.text

    status, text = run(ask())
    assert (status, "more than 8 brackets in brackets" in text) == (400, True)


def test_a_trace_that_fails_costs_no_answer() -> None:
    class Failing(Tracing):
        def __init__(self) -> None: ...

        def ended(self, exchange: Exchange) -> None:
            raise RuntimeError(exchange.path)

    async def ask() -> int:
        async with await new_vlm() as vlm:
            app = create_app(vlm, ServerSettings(), tracing=Failing())
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return (await client.post(CHAT, json={"messages": QUESTION, "max_tokens": 2}, timeout=60)).status_code

    assert run(ask()) == 200


def test_what_a_thread_borrows_it_gives_back_whenever_the_request_ends() -> None:
    async def borrow(*, ends_before: bool) -> list[int]:
        one, seen = exchange(), list[int]()
        one.hold(10)
        let_go = one.keep()
        with ThreadPoolExecutor(1) as pool:
            give_back = await asyncio.wrap_future(pool.submit(one.lend, 100))
            seen.append(one.load.held_bytes)
            if ends_before:
                await one.end()
                seen.append(one.load.held_bytes)
            await asyncio.wrap_future(pool.submit(give_back))
        let_go()
        await asyncio.sleep(0.01)
        seen.append(one.load.held_bytes)
        await one.end()
        return [*seen, one.load.held_bytes]

    assert asyncio.run(borrow(ends_before=False)) == [110, 10, 0]
    assert asyncio.run(borrow(ends_before=True)) == [110, 110, 0, 0]


def test_a_call_of_an_agent_whose_request_has_ended_is_prepared_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, wanted = threading.Event(), threading.Event(), list[bool]()

    def slow(*_arguments: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        try:
            check_wanted()
        finally:
            wanted.append(sys.exception() is None)

    async def ask() -> Any:
        async with await new_vlm(workers=1) as vlm:
            monkeypatch.setattr(vlm.vlm, "prepare", slow)
            service = Service(vlm, ServerSettings(), ("reader",))
            one = Exchange(Load(service.settings), "POST", "/mcp")
            sources = Sources((), service.settings.media_limits)
            caller = agents.HTTPCaller(service, one)
            async with Client(make_server(vlm, sources, lambda _request: caller)) as client:
                arguments = {"media": [data_url(png())], "question": "What?"}
                asking = asyncio.create_task(client.call_tool("look", arguments))
                while not begun.is_set():
                    await asyncio.sleep(0.01)
                await one.end()
                found = await asyncio.wait_for(asking, 30)
            go_on.set()
            return found

    found = run(ask())
    assert found.is_error
    assert found.content[0].text == "the request of this call has ended"
    assert wanted == [False]


def test_a_grammar_is_not_compiled_for_a_client_that_has_left() -> None:
    answers = {"structured_outputs": StructuredOutputs(choice=("yes", "no")), "max_tokens": 2}

    async def ask() -> None:
        async with await new_vlm(workers=1) as vlm:
            await vlm.prepare(QUESTION, **answers)
            compiler = vlm.vlm._grammars
            assert compiler is not None
            answers["structured_outputs"] = StructuredOutputs(choice=("left", "right"))
            with compiler._compiling:
                preparing = asyncio.create_task(vlm.prepare(QUESTION, **answers))
                await asyncio.sleep(0.1)
                preparing.cancel()
                # The only thread: it would wait for most of a minute.
                await asyncio.wait_for(vlm.prepare(QUESTION), 10)

    run(ask())


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/tokenize", {}, 200),
        ("/api/chat", {"options": {"num_ctx": 5}}, 400),
        ("/api/chat", {"options": {"num_predict": 1}, "stream": False}, 200),
    ],
)
def test_a_conversation_that_no_engine_has_seen_is_no_answer(
    path: str, fields: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = list[Exchange]()
    monkeypatch.setattr("pocketvlm.server.guard.log_exchange", logged.append)

    async def ask() -> int:
        async with await new_vlm() as vlm:
            app = App(vlm, served_model_names=("reader",))
            response = await app.client.post(path, json={"model": "reader", "messages": QUESTION, **fields})
            return response.status_code

    assert run(ask()) == status
    is_answered = path != "/tokenize" and status == 200
    (one,) = logged
    assert (len(one.jobs), one.prompt_tokens > 0, one.finish_reasons == ["length"]) == (is_answered,) * 3


@pytest.mark.parametrize("served", ["reader", "reader:latest"])
def test_clients_of_ollama_may_say_latest_or_leave_it_out(served: str) -> None:
    async def ask() -> list[int]:
        async with await new_vlm() as vlm:
            app = App(vlm, served_model_names=(served,))
            bodies = [{"model": name, "messages": []} for name in ("reader", "reader:latest", "reader:1b")]
            return [(await app.client.post("/api/chat", json=body)).status_code for body in bodies]

    assert run(ask()) == [200, 200, 404]
