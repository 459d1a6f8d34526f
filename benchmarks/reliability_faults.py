"""Faults of the engine under a server, each one command: python benchmarks/reliability_faults.py CASE [--requests N].

tower-fault    no memory is left for one picture: that request fails, the others are answered as on a quiet server
step-fault     a step of the engine fails while requests run: they end within a second, new ones are answered

`python benchmarks/reliability_faults.py serve [OPTION ...]` is `pocketvlm serve` with these faults to order: memory
runs out for pictures as wide as `WIDE` patches, and SIGUSR1 makes the next step fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from reliability_server import Server, at_once, picture, request

from pocketvlm.cli import main as pocketvlm
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.views import View

SECRET = "insides of a library at 0x7f"
WIDE = 4  # times as wide as high: no other picture here is


def serve(arguments: Sequence[str]) -> int:
    """`pocketvlm serve` with faults to order."""
    ordered = list[int]()
    signal.signal(signal.SIGUSR1, lambda number, _: ordered.append(number))
    for runner in (TorchRunner, ONNXRunner):
        _break(runner, ordered)
    return pocketvlm(list(arguments))


def _break(runner: Any, ordered: list[int]) -> None:
    encode_views, forward = runner.encode_views, runner.forward

    def encode(self: Any, patches: torch.Tensor, views: Sequence[View], *more: Any) -> Any:
        if any(view.size.width >= WIDE * view.size.height for view in views):
            raise torch.OutOfMemoryError(f"tried to allocate 3.14 GiB, {SECRET}")
        return encode_views(self, patches, views, *more)

    def step(self: Any, *args: Any) -> Any:
        if ordered:
            ordered.clear()
            raise RuntimeError(f"a fault of the device, {SECRET}")
        return forward(self, *args)

    runner.encode_views, runner.forward = encode, step


def choices(found: tuple[int, bytes, float]) -> Any:
    return json.loads(found[1])["choices"] if found[0] == 200 else None


async def tower_fault(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    async def good(number: int) -> Any:
        return choices(await server.ask(request(number, look=number % 2 == 0)))

    async def either(number: int) -> Any:
        if number % 4:
            return await good(number)
        part = {"type": "image_url", "image_url": {"url": picture(seed=number, times_wider=2 * WIDE)}}
        status, body, _ = await server.ask(
            request(messages=[{"role": "user", "content": [part]}], stream=number % 8 == 0)
        )
        return status, json.loads(body)["error"]["message"]

    quiet = await at_once(args.requests, good, 1)
    mixed = await at_once(args.requests, either)
    failed = mixed[::4]
    equal = all(mixed[i] == quiet[i] is not None for i in range(args.requests) if i % 4)
    found = await server.reconciled()
    clean = all(500 <= status < 600 and SECRET not in message for status, message in failed)
    ok = clean and equal and found["reconciled"] and found["error"] == len(failed)
    return {"failed": failed[0], "failed_5xx": len(failed), "others_equal_to_quiet": equal, **found, "ok": ok}


async def step_fault(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    quiet = choices(await server.ask(request(1)))
    before = (await server.metrics())["requests_total"]
    # Too long to have ended before all have begun.
    running = [
        asyncio.create_task(server.ask(request(number, 400, stream=number % 2 == 0)))
        for number in range(min(args.requests, 16))
    ]
    while (await server.metrics())["requests_total"] < before + len(running):
        await asyncio.sleep(0.01)
    began = time.perf_counter()
    server.process.send_signal(signal.SIGUSR1)
    ended, clean = list[float](), True
    for one in asyncio.as_completed(running):
        status, body, _ = await one
        if b"error" in body:
            ended.append(time.perf_counter() - began)
        # A status where none was sent, or an event in place of the last one.
        clean &= SECRET.encode() not in body and (status == 500 or (status == 200 and b"error" in body))
    began = time.perf_counter()
    answered = choices(await server.ask(request(1))) == quiet is not None
    again, found = time.perf_counter() - began, await server.reconciled()
    ok = clean and len(ended) > 0 and max(ended) <= 1 and answered and again <= 5 and found["reconciled"]
    return {
        "running": len(running),
        "failed": len(ended),
        "clean": clean,
        "slowest_error_s": round(max(ended, default=0), 3),
        "answered_again_as_before": answered,
        "again_s": round(again, 3),
        **found,
        "ok": ok,
    }


CASES = {"tower-fault": tower_fault, "step-fault": step_fault}


async def measure(args: argparse.Namespace) -> bool:
    """Print a line for each case; returns whether all are as they should be."""
    is_ok = True
    for case in args.cases:
        server = await asyncio.to_thread(Server, args, program=(__file__,))
        try:
            found = await CASES[case](server, args)
        finally:
            server.end()
        print(json.dumps({"case": case, "model": args.model, **found}), flush=True)
        is_ok &= found["ok"]
    return is_ok


def main() -> int:
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[1:])
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("cases", choices=list(CASES), nargs="+", metavar="CASE")
    cli.add_argument("--model", default="nano")
    cli.add_argument("--requests", type=int, default=32)
    return int(not asyncio.run(measure(cli.parse_args())))


if __name__ == "__main__":
    sys.exit(main())
