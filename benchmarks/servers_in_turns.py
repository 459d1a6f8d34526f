#!/usr/bin/env python3
"""The same load on `pocketvlm serve` and on llama.cpp's server, both over HTTP, in turns, in one run.

    python benchmarks/servers_in_turns.py --model DIR --server llama-server --gguf q8_0.gguf --mmproj q8_0.gguf

The load is that of `pocketvlm bench serving` (closed loop, streams, cold pictures, answers of a fixed length). Both
servers listen on loopback with as many threads as there are cores; llama.cpp's gets a slot for each request under way
and keeps no prompts. Prints one JSON line: medians of the rounds, and theirs over ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

from against_llama_server import served

from pocketvlm.benchmark.serving import targets
from pocketvlm.benchmark.serving.run import Plan, measure, median_of
from pocketvlm.benchmark.serving.workload import IMAGES, Workload
from pocketvlm.machine import processor_name, usable_cores

SHOWN = ("request_throughput", "output_throughput", "median_ttft_ms", "median_tpot_ms", "median_e2el_ms", "failed")


async def in_turns(urls: dict[str, str], workload: Workload, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    async with AsyncExitStack() as stack:
        asked = {name: await stack.enter_async_context(targets.by_http(url, None)) for name, url in urls.items()}
        return await measure(asked, workload, plan, lambda *_: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `pocketvlm serve` takes it")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--server", type=Path, required=True, help="llama-server")
    parser.add_argument("--gguf", type=Path, nargs="+", required=True, help="decoders, a server for each")
    parser.add_argument("--mmproj", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-concurrency", type=int, default=4)
    parser.add_argument("--images", choices=IMAGES, default="natural")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    workload = Workload(
        requests=args.requests,
        images=args.images,
        side=args.image_size,
        max_tokens=args.max_tokens,
        model="model",
    )
    plan = Plan(max_concurrency=args.max_concurrency, request_rate=None, objectives={}, warmup=1, rounds=args.rounds)
    with ExitStack() as stack:
        options = [f"--model={args.model}", f"--quantization={args.quantization}", "--served-model-name=model"]
        urls = {"pocketvlm": stack.enter_context(targets.own_server(options))}
        for gguf in args.gguf:
            slots = args.max_concurrency
            sizes = ["-t", str(usable_cores()), "-np", str(slots), "-c", str(2048 * slots)]
            command = [str(args.server), "-m", str(gguf), "--mmproj", str(args.mmproj), *sizes]
            address = stack.enter_context(served([*command, "--jinja", "--no-webui", "--cache-ram", "0"]))
            urls[gguf.stem] = f"{address}/v1"
        rounds = asyncio.run(in_turns(urls, workload, plan))
    found: dict[str, dict[str, Any]] = {}
    for name, figures in rounds.items():
        medians = median_of(figures)
        reasons = {reason: count for one in figures for reason, count in one["failures"].items()}
        found[name] = {key: medians[key] for key in SHOWN} | {"failures": reasons}
    ours = found["pocketvlm"]
    for name, figures in found.items():
        if name != "pocketvlm":
            figures["throughput_of_ours_over_it"] = round(ours["request_throughput"] / figures["request_throughput"], 2)
            figures["ttft_of_it_over_ours"] = round(figures["median_ttft_ms"] / ours["median_ttft_ms"], 2)
    facts = {
        name: getattr(args, name) for name in ("requests", "max_concurrency", "images", "image_size", "max_tokens")
    }
    print(json.dumps({"machine": processor_name(), "threads": usable_cores(), **facts, **found}))


if __name__ == "__main__":
    main()
