"""Bodies before anything is made of them: what they hold is counted as it arrives, and large ones are read apart."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from typing import Any

import pytest
from helpers.app import CHAT
from helpers.serving import Serving
from starlette.requests import Request

from pocketvlm.server.body import LARGE, read_json
from pocketvlm.server.errors import HTTPError
from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.json_structure import JSONStructure
from pocketvlm.server.settings import ServerSettings


def drawn(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 6 else 3)
    if kind < 3:
        return "".join(rng.choice('[]{},:"\\\n aé') for _ in range(rng.randrange(8)))
    if kind < 6:
        return [drawn(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f'{number}"]\\': drawn(rng, depth + 1) for number in range(rng.randrange(4))}


def measured(value: Any) -> tuple[int, int]:
    """Commas and brackets of a value, and how deep it is."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [measured(item) for item in (value.values() if isinstance(value, dict) else value)]
    commas = max(len(inner) - 1, 0)
    return 2 + commas + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)


def test_what_a_body_holds_is_counted_whatever_its_strings_say_and_wherever_it_is_cut() -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = drawn(rng)
        text, structure = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(), JSONStructure()
        while text:
            size = rng.choice((1, 2, 3, 100))
            structure.add(text[:size])
            text = text[size:]
        assert (structure.values, structure.depth) == measured(value)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/tokenize", "/detokenize", "/v1/view_plan", "/api/chat"])
def test_brackets_in_strings_hide_no_depth(server: Serving, path: str) -> None:
    for levels in (100, 5000):
        status, body, _ = server.ask(path, b'["]",' * levels + b"1" + b"]" * levels)
        assert status == 400
        assert "64 brackets in brackets" in body


def test_strings_may_hold_as_many_commas_and_brackets_as_they_like(server: Serving) -> None:
    text = "[,{" * 90_000
    status, body, _ = server.ask("/tokenize", {"prompt": text})
    assert status == 200
    assert json.loads(body)["count"] >= 1


@pytest.mark.parametrize("body", [b"\xff\xfe{\x00}\x00", b'{"prompt": "\xff"}', b"{}" + b" " * LARGE + b"{}"])
def test_a_body_that_is_no_json_in_utf_8_is_400(server: Serving, body: bytes) -> None:
    status, text, _ = server.ask("/tokenize", body)
    assert status == 400
    assert "not JSON in UTF-8" in text


def read(body: bytes) -> tuple[Any, threading.Thread]:
    """What `read_json` makes of a body, and the thread that did."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [],
        "query_string": b"",
        "raw_path": b"/",
    }
    Exchange(Load(ServerSettings(max_json_depth=500)), "POST", "/").put_into(scope)
    return asyncio.run(read_json(Request(scope, receive), lambda value: (value, threading.current_thread())))


def test_large_bodies_are_read_apart_from_the_event_loop_and_say_the_same() -> None:
    for value in ([1, 1.5, -0.0, 10**60, True, None, "é\u0000"], {"a": "b", "c": {}}, ["\ud800"], "x"):
        small = json.dumps(value)
        large = small + " " * LARGE
        assert read(small.encode()) == (value, threading.main_thread())
        found, thread = read(large.encode())
        assert (repr(found), thread is threading.main_thread()) == (repr(value), False)
    deep = b"[" * 400 + b"]" * 400  # more than the fast reader takes
    assert repr(read(deep + b" " * LARGE)[0]) == deep.decode()
    for bad in (b"NaN", b"[1,]", b"9" * 5000, b'"\n"'):
        for padding in (b"", b" " * LARGE):
            with pytest.raises(HTTPError, match="not JSON in UTF-8"):
                read(bad + padding)


def test_messages_have_so_many_parts(server: Serving) -> None:
    parts = [{"type": "text", "text": "a"}] * 4097
    messages = [{"role": "user", "content": parts[:3000]}, {"role": "user", "content": parts[3000:]}]
    for path, body in ((CHAT, {"messages": messages}), ("/tokenize", {"messages": messages})):
        status, text, _ = server.ask(path, body)
        assert (status, "4097 parts, at most 4096" in text) == (400, True)
