"""What is written in one turn of the event loop is sent at once, all of it, in order, and before an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pocketvlm.server.joined_writes import JoinedWrites


class Recorded:
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.done or "abort" in self.done

    def get_write_buffer_size(self) -> int:
        return 5

    def get_extra_info(self, name: str) -> str:
        return name


def after(write: Callable[[Any], None]) -> list[Any]:
    """What becomes of it in the next turns of a loop."""

    async def turns() -> list[Any]:
        inner: Any = Recorded()
        joined = JoinedWrites(inner, asyncio.get_running_loop())
        write(joined)
        for _ in range(3):
            await asyncio.sleep(0)
        return list(inner.done)

    return asyncio.run(turns())


def pieces(joined: Any) -> None:
    for piece in (b"head", b"", b"first", b"second"):
        joined.write(piece)


def test_pieces_of_one_turn_are_sent_at_once() -> None:
    assert after(pieces) == [b"headfirstsecond"]


def test_nothing_is_sent_where_nothing_was_written() -> None:
    assert after(lambda joined: joined.write(b"")) == []


@pytest.mark.parametrize(("end", "done"), [("close", [b"headfirstsecond", "close"]), ("abort", ["abort"])])
def test_an_end_comes_behind_what_was_written_and_an_abort_in_front(end: str, done: list[Any]) -> None:
    def write(joined: Any) -> None:
        pieces(joined)
        getattr(joined, end)()
        joined.write(b"too late")

    assert after(write) == done


def test_what_waits_counts_and_the_rest_is_the_transports() -> None:
    def write(joined: Any) -> None:
        pieces(joined)
        assert joined.get_write_buffer_size() == 5 + len(b"headfirstsecond")
        assert joined.get_extra_info("peername") == "peername"

    after(write)


def test_later_turns_are_sent_too() -> None:
    async def turns() -> list[Any]:
        inner: Any = Recorded()
        joined = JoinedWrites(inner, asyncio.get_running_loop())
        for piece in (b"a", b"b"):
            joined.write(piece)
            await asyncio.sleep(0)
        return list(inner.done)

    assert asyncio.run(turns()) == [b"a", b"b"]
