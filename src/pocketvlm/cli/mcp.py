"""pocketvlm mcp: the model as tools for agents, over stdio."""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from typing import TYPE_CHECKING

from pocketvlm.cli.common import add_adapter, add_model, loaded
from pocketvlm.cli.console import say
from pocketvlm.processing.media.limits import MediaLimits

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM

MAX_BYTES = 256 * 2**20  # of one file: videos of a phone fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_adapter(parser)
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder to read files from; may be several",
    )
    parser.add_argument("--fetch-urls", action="store_true", help="fetch http(s) URLs of public addresses too")


def run(args: argparse.Namespace) -> int:
    from pocketvlm.api.async_vlm import AsyncVLM
    from pocketvlm.mcp_server.server import serve_stdio
    from pocketvlm.mcp_server.sources import Sources

    async def _serve(vlm: VLM) -> None:
        async with AsyncVLM(vlm) as model:
            await serve_stdio(model, sources)

    limits = MediaLimits(max_bytes=MAX_BYTES, fetch_urls=args.fetch_urls)
    sources = Sources(tuple(args.root), limits, MAX_BYTES)
    with loaded(args) as vlm:
        vlm.progress = None
        vlm.processor.restrict(limits)
        say("Serving at stdin and stdout; Ctrl-C ends it.")
        if threading.current_thread() is threading.main_thread():
            # A thread waits for stdin, which nothing but its end interrupts.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        asyncio.run(_serve(vlm))
    return 0
