"""Figures of a server under faults, each one command: python benchmarks/reliability.py CASE [--model DIR].

abort-storm    requests of which half leave at a random point: nothing of them is left, the others are answered
slow-clients   uploads and readers that crawl, beside clients that do not
overload       ten times what the server can do: who is refused at once, and what the others wait
poison         malformed requests between good ones, whose answers stay the same
sigterm        a signal under load: no longer ready, all that was accepted ends, status 0
soak           all of this for as long as `--seconds` says: memory, files, threads, counters
hostile-media  hosts that stall, never end, redirect, drip
malformed      pictures of odd kinds, broken, or none at all: 200 or 400, each within a second
bomb           a picture of 50,000² pixels in some bytes: refused by its head
worker-kill    kill -9 of a process that decodes, at work and idle
memory         resources after 1,000 requests and after all of them
idle-streams   memory of streams that wait, and of connections that do nothing
disconnects    steps between a client's end and that of its answer
loop-lag       how late the event loop answers while grammars are compiled and large bodies arrive

Every case starts `pocketvlm serve`, prints one JSON line with `ok`, and ends with status 1 where that is false. Several
cases share a server with the options of all, one after the other: for yes or no, not for times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from reliability_media import bomb, hostile_media, malformed, worker_kill
from reliability_memory import disconnects, idle_streams, memory
from reliability_server import CHAT, POISON, Server, at_once, p, request


async def abort_storm(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(args.seed)
    plans = [draw.random() * 0.5 if draw.random() < 0.5 else None for _ in range(args.requests)]
    statuses: dict[int, int] = {}

    async def one(number: int) -> None:
        asked = request(number, 16, look=number % 4 == 0, stream=number % 2 == 0)
        status, _, _ = await server.ask(asked, leave=plans[number])
        key = status if plans[number] is None else min(status, 0) or status
        statuses[key] = statuses.get(key, 0) + 1

    await at_once(args.requests, one)
    found = await server.reconciled()
    alive, _, _ = await server.ask(request())
    bad = sum(count for status, count in statuses.items() if status not in (0, 200))
    return {"statuses": statuses, **found, "ok": bad == 0 and found["reconciled"] and alive == 200}


async def slow_clients(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """With and without them in turns, since a machine is not always as fast as it is."""

    async def rate() -> float:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds / 3:
            found = await at_once(16, lambda i: server.ask(request(i)), 8)
            assert all(status == 200 for status, _, _ in found)
            count += 16
        return count / (time.perf_counter() - began)

    async def crawl(writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(1)

    async def beside_slow_ones() -> float:
        held, asked_before = [], (await server.metrics())["requests_total"]
        for _ in range(args.clients):
            _, writer = await asyncio.open_connection(server.host, server.port)
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{{"
            writer.write(head.encode())
            held.append((writer, asyncio.create_task(crawl(writer))))
            # A reader that asks for much and takes nothing of it.
            _, writer = await asyncio.open_connection(server.host, server.port, limit=1)
            body = json.dumps(request(stream=True)).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            held.append((writer, asyncio.create_task(asyncio.sleep(0))))
        while True:  # until their own answers are made, all of them
            now = await server.metrics()
            has_all = now["requests_total"] - asked_before == args.clients
            if has_all and now["num_requests_running"] + now["num_requests_waiting"] == 0:
                break
            await asyncio.sleep(0.2)
        # Nobody else is there for a while: what the server spends on them alone.
        began, spent = time.perf_counter(), server.processor_seconds()
        await asyncio.sleep(5)
        shares.append((server.processor_seconds() - spent) / (time.perf_counter() - began))
        found = await rate()
        for writer, task in held:
            task.cancel()
            writer.transport.abort()
        return found

    await rate()
    alone, beside, shares = [await rate()], list[float](), list[float]()
    for _ in range(3):
        beside.append(await beside_slow_ones())
        alone.append(await rate())
    losses = [1 - 2 * slow / (before + after) for slow, before, after in zip(beside, alone, alone[1:], strict=False)]
    loss = statistics.median(losses)
    found = await server.reconciled()
    return {
        "slow_uploads": args.clients,
        "stalled_readers": args.clients,
        "requests_s": [round(value, 2) for value in alone],
        "requests_s_beside": [round(value, 2) for value in beside],
        "loss": round(loss, 4),
        "processor_share_of_slow_ones": round(statistics.median(shares), 4),
        **found,
        "ok": loss < 0.05 and found["reconciled"],
    }


async def overload(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    async def timed(number: int) -> tuple[int, float]:
        status, _, seconds = await server.ask(request(number, stream=True))
        return status, seconds

    await at_once(64, timed, 32)
    began = time.perf_counter()
    base = await at_once(args.requests, timed, 32)
    rate = len(base) / (time.perf_counter() - began)
    running, count = [], int(rate * 10 * args.seconds)
    began = time.perf_counter()
    for number in range(count):
        running.append(asyncio.create_task(timed(number)))
        await asyncio.sleep(max(0.0, began + number / (10 * rate) - time.perf_counter()))
    found = await asyncio.gather(*running)
    capacity, accepted = p([s for _, s in base], 0.99), [s for status, s in found if status == 200]
    refused = [seconds for status, seconds in found if status in (429, 503)]
    others = len(found) - len(accepted) - len(refused)
    counters = await server.reconciled()
    ratio = round(p(accepted, 0.99) / capacity, 2)
    return {
        "capacity_requests_s": round(rate, 2),
        "asked_requests_s": round(10 * rate, 1),
        "accepted_by_clients": len(accepted),
        "refused": len(refused),
        "others": others,
        "refused_p50_s": p(refused, 0.5),
        "refused_p99_s": p(refused, 0.99),
        "ttft_p99_capacity_s": capacity,
        "ttft_p99_s": p(accepted, 0.99),
        "ratio": ratio,
        **counters,
        "ok": others == 0 and ratio <= 2 and counters["reconciled"],
    }


async def poison(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    def words(found: tuple[int, bytes, float]) -> Any:
        return found[0], json.loads(found[1])["choices"] if found[0] == 200 else None

    async def good(number: int) -> Any:
        return words(await server.ask(request(number, look=number % 2 == 0)))

    async def either(number: int) -> Any:
        half = number // 2
        return await good(half) if number % 2 else (await server.ask(POISON[half % len(POISON)]))[0]

    quiet = await at_once(args.requests, good, 1)
    mixed = await at_once(2 * args.requests, either)
    refused, equal = sum(400 <= status < 500 for status in mixed[::2]), mixed[1::2] == quiet
    found = await server.reconciled()
    ok = refused == args.requests and equal and all(status == 200 for status, _ in quiet) and found["reconciled"]
    return {"poison": args.requests, "refused_4xx": refused, "good_equal_to_quiet": equal, **found, "ok": ok}


async def sigterm(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    before = (await server.metrics()).get("requests_total", 0)
    running = [
        asyncio.create_task(server.ask(request(i, 64, stream=i % 2 == 0))) for i in range(min(args.requests, 64))
    ]
    while (await server.metrics()).get("requests_total", 0) < before + len(running):
        await asyncio.sleep(0.01)
    began = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    while True:
        try:
            if (await server.ask(path="/ready"))[0] != 200:
                break
        except OSError:
            break
    not_ready = time.perf_counter() - began
    statuses = [status for status, _, _ in await asyncio.gather(*running)]
    status = await asyncio.to_thread(server.process.wait, 60)
    ok = not_ready <= 0.25 and set(statuses) == {200} and status == 0
    return {
        "running": len(running),
        "not_ready_s": round(not_ready, 3),
        "finished": statuses.count(200),
        "exit_status": status,
        "drained_s": round(time.perf_counter() - began, 2),
        "ok": ok,
    }


async def soak(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    draw, statuses, began = random.Random(args.seed), dict[int, int](), time.perf_counter()
    samples: list[dict[str, int]] = []
    unexplained = 0

    async def one(number: int) -> None:
        nonlocal unexplained
        kind = draw.random()
        if kind < 0.15:
            status, _, _ = await server.ask(POISON[number % len(POISON)])
            unexplained += not 400 <= status < 500
        elif kind < 0.3:
            status, _, _ = await server.ask(request(number, look=kind < 0.2, stream=True), leave=draw.random() * 0.3)
            unexplained += status not in (0, 200)
        else:
            status, _, _ = await server.ask(request(number % 50, look=kind > 0.7, stream=kind > 0.5))
            unexplained += status != 200
        statuses[status] = statuses.get(status, 0) + 1

    count = 0
    while time.perf_counter() - began < args.seconds:
        await at_once(200, one, 24)
        count += 200
        samples.append(server.resources())
    found = await server.reconciled()
    settled = samples[len(samples) // 4 :]  # caches are full by then
    # Memory of what is under way comes and goes by 5 % and more; what leaks raises the least of it. `memory` is finer.
    third = len(settled) // 3
    least = [min(s["rss_mib"] for s in part) for part in (settled[: third or 1], settled[-third:])]
    growth = least[1] / least[0] - 1
    steady = max(s["files"] for s in settled[-3:]) <= max(s["files"] for s in settled[:3]) + 8
    return {
        "seconds": round(time.perf_counter() - began),
        "requests": count,
        "statuses": statuses,
        "unexplained": unexplained,
        "first": settled[0],
        "last": settled[-1],
        "least_rss_mib": least,
        "rss_mib": [s["rss_mib"] for s in samples[:: max(1, len(samples) // 8)]],
        "rss_growth": round(growth, 4),
        **found,
        "ok": unexplained == 0 and growth < 0.05 and steady and found["reconciled"],
    }


async def loop_lag(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(20):
        nested = {"type": "object", "properties": {"a": nested, "b": nested}, "required": ["a"]}
    schema = {
        "type": "object",
        "properties": {f"p{i}": {"type": "array", "items": {"type": "number"}} for i in range(200)},
    }
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": schema, "strict": True}} for i in range(4)
    ]
    bodies: list[bytes | dict[str, Any]] = [
        request(structured_outputs={"json": schema}),
        request(structured_outputs={"regex": "(a|b|c){1,2000}" * 5}),
        request(structured_outputs={"regex": "(a*)*(b*)*" * 50}),
        request(structured_outputs={"choice": [f"word {i}" for i in range(2000)]}),
        request(tools=tools, tool_choice="required"),
        request(
            structured_outputs={
                "json": {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
            }
        ),
        request(messages=[{"role": "user", "content": "a" * 2**20}]),
        b'{"messages": [' + b"0," * 400_000 + b"0]}",
        b'{"messages": "' + b"a" * 20_000_000 + b'"}',
    ]
    lags, times, done = list[float](), list[float](), asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            lags.append((await server.ask(path="/health"))[2])
            await asyncio.sleep(0.02)

    async def one(number: int) -> int:
        body = bodies[number % len(bodies)]
        if isinstance(body, dict):
            body = {**body, "seed": number}
        began = time.perf_counter()
        status, _, _ = await server.ask(body)
        times.append(time.perf_counter() - began)
        return status

    watching = asyncio.create_task(watch())
    statuses = await at_once(args.requests, one, 4)
    done.set()
    await watching
    worst = p(lags, 0.99)
    ok = worst < 0.05 and all(200 <= status < 500 for status in statuses)
    return {
        "requests": len(statuses),
        "health_p50_s": p(lags, 0.5),
        "health_p99_s": worst,
        "health_max_s": round(max(lags), 4),
        "slowest_request_s": round(max(times), 2),
        "median_request_s": round(statistics.median(times), 3),
        "ok": ok,
    }


# Each with the options of its server.
CASES: dict[str, tuple[Callable[[Server, argparse.Namespace], Awaitable[dict[str, Any]]], tuple[str, ...]]] = {
    "abort-storm": (abort_storm, ()),
    "slow-clients": (slow_clients, ("--max-in-flight", "1000")),
    "overload": (overload, ("--max-in-flight", "32")),
    "poison": (poison, ()),
    "sigterm": (sigterm, ()),
    "soak": (soak, ("--prefix-cache-memory", str(32 * 2**20), "--encoder-cache-memory", str(4 * 2**20))),
    "hostile-media": (hostile_media, ("--private-host", "127.0.0.1", "--fetch-seconds", "2")),
    "malformed": (malformed, ()),
    "bomb": (bomb, ()),
    "worker-kill": (worker_kill, ("--preprocess-processes", "1")),
    "loop-lag": (loop_lag, ()),
    "memory": (memory, ("--prefix-cache-memory", str(32 * 2**20), "--encoder-cache-memory", str(4 * 2**20))),
    "idle-streams": (idle_streams, ("--max-in-flight", "1000")),
    "disconnects": (disconnects, ()),
}


@asynccontextmanager
async def started(args: argparse.Namespace) -> AsyncIterator[Server]:
    options = [option for case in args.cases for option in CASES[case][1]]
    server = await asyncio.to_thread(Server, args, *options)
    try:
        for number in range(4):  # what is made with the first requests is there
            await server.ask(request(number, look=True))
        yield server
    finally:
        server.end()


async def measure(args: argparse.Namespace) -> bool:
    """Print a line for each case; returns whether all are as they should be."""
    is_ok = True
    async with started(args) as server:
        for case in args.cases:
            began = time.perf_counter()
            found = await CASES[case][0](server, args)
            took = round(time.perf_counter() - began, 1)
            print(json.dumps({"case": case, "model": args.model, **found, "took_s": took}), flush=True)
            is_ok &= found["ok"]
    return is_ok


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("cases", choices=list(CASES), nargs="+", metavar="CASE")
    cli.add_argument("--model", default="nano")
    cli.add_argument("--requests", type=int, default=100)
    cli.add_argument("--clients", type=int, default=200, help="slow uploads, and as many stalled readers")
    cli.add_argument("--seconds", type=float, default=20)
    cli.add_argument("--seed", type=int, default=0)
    return int(not asyncio.run(measure(cli.parse_args())))


if __name__ == "__main__":
    sys.exit(main())
