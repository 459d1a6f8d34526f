"""Cases of `reliability.py` about what a server holds: memory, streams that wait, slots of clients that left."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from contextlib import suppress
from typing import Any

from reliability_server import CHAT, Server, at_once, p, request

SETTLED = 1000  # requests after which caches are full
LIMIT_MIB = 100


async def memory(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Short requests, each of its own text, one in ten with a picture of its own, a third streamed."""
    statuses: dict[int, int] = {}

    async def one(number: int) -> None:
        asked = request(number, 2, look=number % 10 == 0, stream=number % 3 == 0)
        status, _, _ = await server.ask(asked)
        statuses[status] = statuses.get(status, 0) + 1

    samples, done = list[dict[str, int]](), 0
    while done < args.requests:
        count = min(500, args.requests - done)
        begin = done
        await at_once(count, lambda i, begin=begin: one(begin + i), 16)
        done += count
        samples.append({"requests": done, **server.resources()})
    settled = next((s for s in samples if s["requests"] >= SETTLED), samples[0])
    last, found = samples[-1], await server.reconciled()
    growth = last["rss_mib"] / settled["rss_mib"] - 1
    half = samples[len(samples) // 2]
    constant = last["threads"] <= half["threads"] and last["files"] <= settled["files"] + 2
    ok = set(statuses) == {200} and growth < 0.01 and constant and found["reconciled"]
    between = samples[:: max(1, len(samples) // 8)]
    return {
        "statuses": statuses,
        "settled": settled,
        "half": half,
        "last": last,
        "rss_mib": [s["rss_mib"] for s in between],
        "rss_growth": round(growth, 4),
        "files_and_threads_constant": constant,
        **found,
        "ok": ok,
    }


async def idle_streams(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """As many streams at once as clients are wanted: some run, the others wait for a slot, all are held open."""
    before = server.resources()["rss_mib"]
    writers = list[asyncio.StreamWriter]()
    for _ in range(args.clients):
        _, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writers.append(writer)
    await asyncio.sleep(1)
    connected = server.resources()["rss_mib"] - before
    for number, writer in enumerate(writers):
        body = json.dumps(request(number, 4000, stream=True)).encode()
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    metrics, most = await server.metrics(), 0
    for _ in range(20):
        await asyncio.sleep(0.25)
        metrics = await server.metrics()
        most = max(most, int(metrics["num_requests_running"] + metrics["num_requests_waiting"]))
    streaming = server.resources()["rss_mib"] - before
    for writer in writers:
        writer.transport.abort()
    found = await server.reconciled()
    return {
        "connections": args.clients,
        "idle_connections_mib": connected,
        "most_streams": most,
        "running": int(metrics["num_requests_running"]),
        "streams_mib": streaming,
        **found,
        "ok": most == args.clients and streaming < LIMIT_MIB and found["reconciled"],
    }


async def disconnects(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """A client alone reads for a while and leaves. A step makes one token, and each token has its log probability: what
    the server made beyond those that the client read are the steps until the answer's end, and those under way to it.
    """
    draw, steps, seconds = random.Random(args.seed), list[float](), list[float]()
    loop = asyncio.get_running_loop()
    for number in range(args.requests):
        before = (await server.metrics())["generation_tokens_total"]
        reader, writer = await asyncio.open_connection(server.host, server.port)
        body = json.dumps(request(number, 4000, stream=True, logprobs=True)).encode()
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        read, wanted = 0, draw.randrange(1, 20)
        while read < wanted:
            line = await reader.readline()
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    read += len((choice.get("logprobs") or {}).get("content") or ())
        with suppress(OSError):
            writer.transport.abort()
        began = loop.time()
        metrics = await server.metrics()
        while metrics["num_requests_running"]:
            metrics = await server.metrics()
        seconds.append(loop.time() - began)
        steps.append(metrics["generation_tokens_total"] - before - read)
    found = await server.reconciled()
    worst = p(steps, 0.99)
    return {
        "disconnects": args.requests,
        "steps_p50": p(steps, 0.5),
        "steps_p99": worst,
        "steps_max": max(steps),
        "seconds_p99": p(seconds, 0.99),
        **found,
        "ok": worst <= 2 and found["reconciled"],
    }
