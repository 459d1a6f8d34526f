"""A stream of events is sent whole, or ends with its client: what makes the events is closed in every case."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from pocketvlm.server.event_stream import NDJSON, EventStream, event, line


class Connection:
    """A client: it reads `most` pieces and then nothing, and leaves when it is told to."""

    def __init__(self, most: int = 100) -> None:
        self.most, self.sent, self.leaves, self.closed = most, list[Any](), asyncio.Event(), False

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self.most:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def events(self, count: int, fault: Exception | None = None) -> AsyncGenerator[str, None]:
        try:
            for number in range(count):
                yield event({"number": number})
            if fault is not None:
                raise fault
            yield event({"number": "last"})
        finally:
            self.closed = True

    async def take(self, stream: EventStream) -> list[str]:
        async with asyncio.timeout(10):
            await stream({}, self.receive, self.send)
        return [message["body"].decode() for message in self.sent[1:]]


def test_events_come_in_order_with_an_end() -> None:
    async def take() -> tuple[Connection, list[str]]:
        client = Connection()
        return client, await client.take(EventStream(client.events(3), send_seconds=60))

    client, bodies = asyncio.run(take())
    assert bodies == [*(f'data: {{"number": {one}}}\n\n' for one in (0, 1, 2, '"last"')), ""]
    assert [message.get("more_body") for message in client.sent[1:]] == [True] * 4 + [False]
    headers = dict(client.sent[0]["headers"])
    assert (client.sent[0]["status"], headers[b"cache-control"], headers[b"x-accel-buffering"]) == (
        200, b"no-cache", b"no",
    )  # fmt: skip
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert client.closed


def test_a_client_that_leaves_ends_what_makes_the_events() -> None:
    async def take() -> Connection:
        client = Connection(most=3)
        client.leaves.set()
        await client.take(EventStream(client.events(100), send_seconds=60))
        return client

    client = asyncio.run(take())
    assert client.closed
    assert len(client.sent) <= 3


@pytest.mark.parametrize("fault", [None, RuntimeError("secret")])
def test_a_slow_client_is_no_fault_of_ours_and_a_fault_is_told(
    fault: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def take() -> Connection:
        client = Connection(most=100 if fault else 2)
        await client.take(EventStream(client.events(5, fault), send_seconds=60 if fault else 0.01))
        return client

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(take()).closed
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == ([fault] if fault else [])


def test_an_event_may_have_a_name_and_lines_of_json_are_one_each() -> None:
    assert event({"a": "b\nc"}, "done") == 'event: done\ndata: {"a": "b\\nc"}\n\n'
    assert line({"a": "b\nc"}) == '{"a": "b\\nc"}\n'
    assert NDJSON.media_type == "application/x-ndjson"


@pytest.mark.parametrize("form", [line, event])
def test_no_character_of_an_answer_ends_a_line_where_clients_split_text(form: Any) -> None:
    body = {"a": "first\u2028second\u2029third\x85last"}
    text = form(body)
    assert text.rstrip("\n").splitlines() == [text.rstrip("\n")]
    assert json.loads(text.removeprefix("data: ")) == body
