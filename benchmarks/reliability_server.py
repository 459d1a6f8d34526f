"""A server of its own for each case of `reliability.py`, what it is asked, and what it must refuse."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHAT = "/v1/chat/completions"
LATER = 5.0  # seconds that a server may take to notice what happened


class Server:
    """`pocketvlm serve` in a process of its own."""

    def __init__(
        self, args: argparse.Namespace, *options: str, program: Sequence[str] = ("-m", "pocketvlm.cli")
    ) -> None:
        command = [sys.executable, *program, "serve", "--port", "0", "--json", "--model", args.model]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        url = json.loads(self.process.stdout.readline())["url"]
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)

    async def ask(
        self, body: bytes | dict[str, Any] | None = None, path: str = CHAT, *, leave: float | None = None
    ) -> tuple[int, bytes, float]:
        """Status, body and seconds to the first byte; 0 where this client left, `leave` of a second after it began."""
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        head = f"{'GET' if raw is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            async with asyncio.timeout(leave):
                writer.write(f"{head}Content-Length: {len(raw or b'')}\r\n\r\n".encode() + (raw or b""))
                await writer.drain()
                status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
                first = await reader.read(1)
                seconds = time.perf_counter() - began
                return status, first + await reader.read(-1), seconds
        except TimeoutError:
            return 0, b"", 0.0
        except (OSError, asyncio.IncompleteReadError):
            return -1, b"", 0.0
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def metrics(self) -> dict[str, float]:
        _, body, _ = await self.ask(path="/metrics")
        text = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", body).decode()
        found = re.findall(r"^(pocketvlm:\S+) (\S+)$", text, re.MULTILINE)
        return {name.removeprefix("pocketvlm:"): float(value) for name, value in found}

    async def reconciled(self) -> dict[str, Any]:
        """Whether all that was accepted has ended, and as what; waits for it no longer than a second."""
        began, found = time.perf_counter(), await self.metrics()
        while True:
            ended = {
                reason: int(found.get(f'request_success_total{{finished_reason="{reason}"}}', 0)) for reason in _ENDS
            }
            left = found["num_requests_running"] + found["num_requests_waiting"]
            accepted = int(found["requests_total"])
            ok = left == 0 and accepted == sum(ended.values())
            if ok or time.perf_counter() - began > 1:
                seconds = round(time.perf_counter() - began, 3)
                return {"accepted": accepted, **ended, "left": left, "free_after_s": seconds, "reconciled": ok}
            await asyncio.sleep(0.01)
            found = await self.metrics()

    def resources(self) -> dict[str, int]:
        """Of Linux: memory in MiB, threads and open files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        numbers = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
        files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return {"rss_mib": numbers["VmRSS"] // 1024, "threads": numbers["Threads"], "files": files}

    def processor_seconds(self) -> float:
        """Of Linux: what the server's process has used of processors, without those that decode for it."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_ENDS = ("stop", "length", "abort", "error")


async def at_once(count: int, work: Callable[[int], Awaitable[Any]], most: int = 32) -> list[Any]:
    """`work` for 0 … count - 1, `most` at a time."""
    numbers, found = iter(range(count)), [None] * count

    async def worker() -> None:
        for number in numbers:
            found[number] = await work(number)

    await asyncio.gather(*(worker() for _ in range(min(most, count))))
    return found


def p(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) if ordered else math.nan


def picture(side: int = 56, seed: int = 0, times_wider: int = 1) -> str:
    buffer = io.BytesIO()
    size = (side, side * times_wider, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def request(seed: int = 0, tokens: int = 16, *, look: bool = False, **fields: Any) -> dict[str, Any]:
    content: Any = f"Say {seed}."
    if look:
        content = [{"type": "image_url", "image_url": {"url": picture(seed=seed)}}, {"type": "text", "text": content}]
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        **fields,
    }


POISON: list[bytes | dict[str, Any]] = [
    b"{",
    b"[" * 1000,
    b'{"messages": NaN}',
    request(n=99),
    request(stop=[""]),
    request(colour="red"),
    request(
        messages=[
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}
        ]
    ),
    request(
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a"}}]}]
    ),
    request(structured_outputs={"regex": "("}),
    request(logit_bias={"99999999": 1}),
]
