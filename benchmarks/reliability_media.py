"""Cases of `reliability.py` about what is sent as pictures, and about those that decode them."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import statistics
import struct
import time
import zlib
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reliability_server import LATER, Server, at_once, p, request

BOMB_SIDE, BOMB_SECONDS, BOMB_MIB = 50_000, 0.05, 50


def asked_about(url: str, number: int = 0) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return request(number, 2, messages=[{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}])


def data_url(body: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(body).decode()}"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_pictures() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    frames = [Image.fromarray(np.roll(pixels, shift, 1)) for shift in (10, 20)]
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = rgb.quantize(16)
    palette.info["transparency"] = 0
    png, jpeg = saved(rgb, "PNG"), saved(rgb, "JPEG")
    return {
        "1x1": saved(rgb.crop((0, 0, 1, 1)), "PNG"),
        "1x20000": saved(Image.new("RGB", (1, 20_000)), "PNG"),
        "20000x1": saved(Image.new("RGB", (20_000, 1)), "PNG"),
        "truncated PNG": png[: len(png) // 2],
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "PNG with a wrong sum": png[:40] + bytes([png[40] ^ 1]) + png[41:],
        "CMYK": saved(rgb.convert("CMYK"), "JPEG"),
        "16 bits": saved(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
        "1 bit": saved(rgb.convert("1"), "PNG"),
        "grey with alpha": saved(rgb.convert("LA"), "PNG"),
        "palette with alpha": saved(palette, "PNG"),
        "turned": saved(rgb, "JPEG", exif=turned.tobytes()),
        "animated GIF": saved(rgb, "GIF", save_all=True, append_images=frames),
        "animated WebP": saved(rgb, "WEBP", save_all=True, append_images=frames),
        "BMP": saved(rgb, "BMP"),
        "TIFF": saved(rgb, "TIFF"),
        "head alone": png[:33],
        "text": b"not a picture",
        "HTML": b"<html><body>404</body></html>",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "nothing": b"",
        "noise": np.random.default_rng(1).bytes(10_000),
    }


async def malformed(server: Server, _args: argparse.Namespace) -> dict[str, Any]:
    found, times = dict[str, int](), dict[str, float]()
    for name, body in odd_pictures().items():
        for kind in ("image/png", "image/jpeg"):  # what it is called says nothing
            began = time.perf_counter()
            status, _, _ = await server.ask(asked_about(data_url(body, kind)))
            times[name] = max(time.perf_counter() - began, times.get(name, 0.0))
            found[name] = max(status, found.get(name, 0))
    slowest = max(times, key=lambda name: times[name])
    counters, alive = await server.reconciled(), (await server.ask(request()))[0] == 200
    return {
        "pictures": found,
        "slowest": slowest,
        "slowest_s": round(times[slowest], 3),
        **counters,
        "ok": set(found.values()) <= {200, 400} and times[slowest] < 1 and alive and counters["reconciled"],
    }


async def bomb(server: Server, _args: argparse.Namespace) -> dict[str, Any]:
    """Its pixels are zeros, whole and valid: 2.5 billion of one bit."""
    row = zlib.compressobj(9)
    body = b"".join(row.compress(bytes(1 + BOMB_SIDE // 8)) for _ in range(BOMB_SIDE)) + row.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    asked, before, seconds = asked_about(data_url(file)), memory_mib(server), list[float]()
    for _ in range(20):
        status, _, taken = await server.ask(asked)
        seconds.append(taken)
    grown = memory_mib(server) - before
    median = statistics.median(seconds)
    return {
        "file_bytes": len(file),
        "status": status,
        "median_s": round(median, 4),
        "max_s": round(max(seconds), 4),
        "memory_grown_mib": grown,
        "ok": status == 400 and median < BOMB_SECONDS and grown < BOMB_MIB,
    }


async def worker_kill(server: Server, _args: argparse.Namespace) -> dict[str, Any]:
    """With a single process that decodes: while it is idle, and while it decodes for others."""
    large = data_url(saved(Image.effect_noise((3000, 3000), 90).convert("RGB"), "JPEG"), "image/jpeg")
    small = data_url(saved(Image.new("RGB", (100, 100)), "PNG"))
    statuses, back = list[int](), list[float]()
    for at_work in (False, True) * 5:
        running = asyncio.create_task(server.ask(asked_about(large))) if at_work else None
        await asyncio.sleep(0.1)
        for pid in decoders(server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if running is not None:
            statuses.append((await running)[0])
        began = time.perf_counter()
        status, _, _ = await server.ask(asked_about(small))
        statuses.append(status)
        back.append(time.perf_counter() - began)
    found = await server.reconciled()
    return {
        "kills": len(back),
        "statuses": {status: statuses.count(status) for status in set(statuses)},
        "next_picture_median_s": round(statistics.median(back), 3),
        "next_picture_max_s": round(max(back), 3),
        **found,
        "ok": set(statuses) <= {200, 400} and statistics.median(back) <= 1 and found["reconciled"],
    }


def decoders(server: Server) -> list[int]:
    """Of Linux: what the fork server of the server has forked."""
    forks = [pid for pid in children(server.process.pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [pid for fork in forks for pid in children(fork)]


def children(pid: int) -> list[int]:
    found = list[int]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def memory_mib(server: Server) -> int:
    """Of the server and of those that decode for it, each at its largest."""
    total = 0
    for pid in (server.process.pid, *decoders(server)):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.split("VmHWM:")[1].split()[0])
    return total // 1024


async def hostile_media(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """The host is reached as 127.0.0.1, which the server may; what it redirects to is not."""
    inner = 0

    async def hostile(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            if path == b"/endless":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(bytes(65536))
                    await writer.drain()
            if path == b"/redirect":
                writer.write(f"HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}/inner\r\n\r\n".encode())
            elif path == b"/inner":
                nonlocal inner
                inner += 1
            elif path == b"/drip":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.2)
            else:
                await reader.read()  # until the client leaves
        writer.close()

    host = await asyncio.start_server(hostile, "127.0.0.1", 0)
    port = host.sockets[0].getsockname()[1]
    async with host:

        async def bad(number: int) -> tuple[int, float]:
            path = ("endless", "redirect", "drip", "stall")[number % 4]
            part = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{port}/{path}"}}
            began = time.perf_counter()
            status, _, _ = await server.ask(request(messages=[{"role": "user", "content": [part]}]))
            return status, time.perf_counter() - began

        async def good(number: int) -> tuple[int, float]:
            await asyncio.sleep(0.05)
            status, _, seconds = await server.ask(request(number, look=True))
            return status, seconds

        bads, goods = await asyncio.gather(at_once(args.requests, bad), at_once(args.requests, good, 2))
    slowest = max(seconds for _, seconds in bads)
    ok = {s for s, _ in bads} == {400} and {s for s, _ in goods} == {200} and inner == 0 and slowest < 2 + LATER
    return {
        "hostile": len(bads),
        "slowest_s": round(slowest, 2),
        "connections_to_private": inner,
        "good_p50_s": p([s for _, s in goods], 0.5),
        "good_p99_s": p([s for _, s in goods], 0.99),
        "ok": ok,
    }
