"""`pocketvlm mcp`, started and asked by the client of the `mcp` package, as agents do."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.app import new_vlm
from helpers.clips import clip as make_clip
from helpers.command import run
from helpers.documents import GREEN, RED, coloured
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import CallToolResult

import pocketvlm
from pocketvlm.errors import MediaError
from pocketvlm.mcp_server.server import make_server
from pocketvlm.mcp_server.sources import Sources
from pocketvlm.mcp_server.tools import read_call
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.sources import NamedBytes

EXAMPLES = Path(__file__).parents[2] / "examples"
RECEIPT = EXAMPLES / "receipt.png"
QUESTION = "What is the total?"
SECOND = "What does the second picture say?"
FORM = {
    "type": "object",
    "properties": {"kind": {"enum": ["receipt", "letter"]}, "paid": {"type": "boolean"}},
    "required": ["kind", "paid"],
    "additionalProperties": False,
}
ENDLESS = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "integer"}, "minItems": 4000}}}
ENDLESS |= {"required": ["n"]}


def command(*roots: Path) -> StdioServerParameters:
    options = [part for root in roots for part in ("--root", str(root))]
    arguments = ["-m", "pocketvlm.cli", "mcp", *options]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


@asynccontextmanager
async def agent(*roots: Path, mode: str = "auto") -> AsyncIterator[Client]:
    async with Client(command(*roots), mode=mode) as client:
        yield client


@asynccontextmanager
async def agent_here(*roots: Path) -> AsyncIterator[Client]:
    """An agent of the same server in this process, without stdio: each process takes seconds to start."""
    limits = MediaLimits(fetch_urls=False)
    async with await new_vlm() as vlm:
        vlm.vlm.processor.restrict(limits)
        async with Client(make_server(vlm, Sources(tuple(map(str, roots)), limits))) as client:
            yield client


def said(result: CallToolResult) -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with pictures, what is no picture, and links that lead out of it; beside it what may not be read."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for one in (root / "inner", outside):
        one.mkdir(parents=True)
    for place in (root / "receipt.png", root / "inner" / "receipt.png", outside / "secret.png"):
        place.write_bytes(RECEIPT.read_bytes())
    (root / "broken.png").write_bytes(RECEIPT.read_bytes()[:700])
    (root / "notes.txt").write_text("nothing to see")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "door").symlink_to(outside)
    (root / "inside.png").symlink_to(root / "inner" / "receipt.png")
    (root / "clip.mp4").write_bytes(make_clip())
    return root


def test_an_agent_finds_the_tools_and_gets_the_models_answers(folder: Path) -> None:
    vlm = pocketvlm.load()
    expected = vlm.ask(RECEIPT, QUESTION).text

    async def use() -> None:
        async with agent(folder, EXAMPLES) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert list(tools) == ["look", "read", "extract"]
            assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools.values())
            whole = str(folder / "receipt.png")
            inline = f"data:image/png;base64,{base64.b64encode(RECEIPT.read_bytes()).decode()}"
            for medium in ("receipt.png", "inner/../receipt.png", "inside.png", whole, Path(whole).as_uri(), inline):
                found = await client.call_tool("look", {"media": [medium], "question": QUESTION})
                assert (found.is_error, said(found)) == (False, expected), medium
            two = await client.call_tool("look", {"media": ["receipt.png", "word.png"], "question": SECOND})
            assert said(two) == vlm.ask([RECEIPT, EXAMPLES / "word.png"], SECOND).text
            clip = await client.call_tool(
                "look", {"media": ["clip.mp4"], "question": "What moves?", "max_tokens": 20.0}
            )
            assert not clip.is_error
            read = await client.call_tool("read", {"image": "word.png"})
            assert said(read) == vlm.ask(EXAMPLES / "word.png", "Transcribe the text.").text
            fine = await client.call_tool("read", {"image": "word.png", "fine": True})
            assert said(fine) == vlm.ask(EXAMPLES / "word.png", "Transcribe the text.", downsample_mode="4x").text
            form = await client.call_tool("extract", {"media": ["receipt.png"], "schema": FORM})
            assert not form.is_error
            assert set(form.structured_content) == {"kind", "paid"}

    asyncio.run(use())


def test_what_is_outside_the_roots_is_refused_alike_whether_it_is_there_or_not(folder: Path) -> None:
    outside = folder.parent / "outside"

    async def use() -> None:
        async with agent_here(folder) as client:
            for path in (
                str(outside / "secret.png"),
                "../outside/secret.png",
                "../outside/missing.png",
                "inner/../../outside/secret.png",
                "link.png",
                "door/secret.png",
                "door/missing.png",
                "/etc/passwd",
                "/no/such/file",
                (outside / "secret.png").as_uri(),
                str(folder),
                ".",
            ):
                found = await client.call_tool("look", {"media": [path], "question": QUESTION})
                assert found.is_error, path
                assert "leads to none of the folders" in said(found), path
                assert "\n" not in said(found)

    asyncio.run(use())


def test_an_error_of_the_user_is_one_line_for_the_agent(folder: Path) -> None:
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("look", {"media": ["missing.png"], "question": QUESTION}, "'missing.png' names no file. Paths begin in "),
        ("look", {"media": ["inner"], "question": QUESTION}, "names a folder"),
        ("look", {"media": ["broken.png"], "question": QUESTION}, "is damaged or cut off"),
        ("look", {"media": ["notes.txt"], "question": QUESTION}, "is not a JPEG"),
        ("look", {"media": ["https://example.com/a.png"], "question": QUESTION}, "Nothing is fetched"),
        ("look", {"media": [], "question": QUESTION}, "media is empty"),
        ("look", {"media": ["a\0b"], "question": QUESTION}, "the folders"),
        ("look", {"media": "receipt.png", "question": QUESTION}, "media is 'receipt.png', expected a list of strings"),
        ("look", {"media": ["receipt.png"]}, "look needs the argument question"),
        ("look", {"media": ["receipt.png"], "question": " "}, "is not a text"),
        ("look", {"media": ["receipt.png"], "question": QUESTION, "colour": 1}, "no argument 'colour'"),
        ("look", {"media": ["receipt.png"], "question": QUESTION, "max_tokens": 10**9}, "max_tokens=1000000000"),
        ("read", {"image": "clip.mp4"}, ""),
        ("extract", {"media": ["receipt.png"], "schema": {"type": "colour"}}, "colour"),
        ("extract", {"media": ["receipt.png"], "schema": ENDLESS, "max_tokens": 20}, "cut off after 20 tokens"),
    ]

    async def use() -> None:
        async with agent_here(folder) as client:
            for name, arguments, says in calls:
                found = await client.call_tool(name, arguments)
                if says:
                    assert found.is_error, arguments
                    assert not said(found).startswith("messages["), arguments
                    assert says in said(found)
                assert "\n" not in said(found) or not found.is_error
            with pytest.raises(MCPError, match="no tool 'fly'"):
                await client.call_tool("fly", {})

    asyncio.run(use())


def test_no_file_is_read_where_more_are_named_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources((str(tmp_path),), MediaLimits(max_images=2, max_videos=1))
    read: list[str] = []
    monkeypatch.setattr(sources, "open", lambda name, _most: read.append(name) or b"")
    arguments = {"media": ["a.png"] * 4, "question": QUESTION}
    with pytest.raises(MediaError, match="4 pictures and videos, at most 3"):
        read_call("look", arguments, sources.open_all)
    assert not read
    read_call("look", {**arguments, "media": ["a.png"] * 3}, sources.open_all)
    assert len(read) == 3


def test_the_files_of_a_call_have_no_more_bytes_together_than_may_be(folder: Path) -> None:
    size = RECEIPT.stat().st_size
    sources = Sources((str(folder),), MediaLimits(), most_bytes=2 * size)
    names = ["receipt.png", (folder / "inner" / "receipt.png").as_uri()]
    assert [len(one) for one in sources.open_all(names)] == [size, size]
    for another in ("notes.txt", (folder / "notes.txt").as_uri()):
        with pytest.raises(MediaError, match=f"The files of the call have more than {2 * size} bytes in all"):
            sources.open_all([*names, another])


def test_pages_of_a_document_are_chosen_behind_its_name(tmp_path: Path) -> None:
    for name in ("a.pdf", "b#1.pdf"):
        (tmp_path / name).write_bytes(coloured(RED, GREEN))
    sources = Sources((str(tmp_path),), MediaLimits())
    for named, pages in (
        ("a.pdf", None),
        ("a.pdf#2", "2"),
        (f"{tmp_path}/a.pdf#page=2", "page=2"),
        ((tmp_path / "a.pdf").as_uri() + "#2", "2"),
        ("b#1.pdf", None),
        ("b#1.pdf#1", "1"),
    ):
        found = sources.open(named, 2**20)
        assert isinstance(found, NamedBytes)
        assert (found.pages, bytes(found)) == (pages, coloured(RED, GREEN))
    for missing in ("c.pdf#1", "a.pdf#x", f"{tmp_path}/../a.pdf#1"):
        with pytest.raises(MediaError, match=r"names no file|leads to none"):
            sources.open(missing, 2**20)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_call_that_is_cancelled_makes_room_for_the_next(mode: str) -> None:
    arguments = {"media": ["receipt.png"], "schema": ENDLESS, "max_tokens": 15000}

    async def use() -> None:
        async with agent(EXAMPLES, mode=mode) as client:
            noted = asyncio.Event()

            async def on_progress(progress: float, _total: float | None, _message: str | None) -> None:
                assert progress > 0
                noted.set()

            asking = asyncio.create_task(client.call_tool("extract", arguments, progress_callback=on_progress))
            await asyncio.wait_for(noted.wait(), 60)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            found = await client.call_tool("look", {"media": ["receipt.png"], "question": QUESTION})
            assert not found.is_error

    asyncio.run(use())


def test_stdout_carries_the_protocol_alone() -> None:
    lines = '{"jsonrpc": "2.0", "id": 1, "method": "ping"}\nnot a message\n'
    one = [sys.executable, "-m", "pocketvlm.cli", "mcp"]
    done = subprocess.run(one, input=lines, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert done.stdout
    assert all(line.startswith('{"jsonrpc"') for line in done.stdout.splitlines())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("root", ["/no/such/folder", ""])
def test_a_root_that_is_no_folder_is_one_line(capsys: pytest.CaptureFixture[str], root: str) -> None:
    """Least of all is one the working directory because a variable was not set."""
    status, out, err = run(capsys, "mcp", "--root", root)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is no folder" in err
