"""pocketvlm bench serving: a server under load, in the terms in which servers are compared."""

from __future__ import annotations

import argparse
import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.common import PLACES, add_json, add_model, check_ranges, loaded, progress_bars
from pocketvlm.cli.console import put_json, put_rich
from pocketvlm.errors import ConfigError
from pocketvlm.machine import processor_name, usable_cores
from pocketvlm.ranges import Range

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM
    from pocketvlm.benchmark.serving.workload import Workload

# Written out, so that --help imports neither numpy nor Pillow.
IMAGES, CACHES, OBJECTIVES = ("natural", "noise", "none"), ("cold", "warm"), ("ttft", "tpot", "e2el")
RANGES = {
    "requests": Range(int, 1, 1_000_000),
    "max_concurrency": Range(int, 1, 10_000),
    "request_rate": Range(float, 0, 100_000, nullable=True, is_open=True),
    "image_size": Range(int, 8, 8000),
    "max_tokens": Range(int, 1, 100_000),
    "warmup": Range(int, 0, 1000),
    "rounds": Range(int, 1, 100),
    "seed": Range(int, 0, 2**32),
}
OBJECTIVE = Range(float, 0, 10**7, is_open=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.prog = "pocketvlm bench serving"
    parser.usage = f"{parser.prog} [--url URL | --model MODEL] [OPTION ...]"
    parser.description = "Time a server under load: one that runs, or one that is started for it."
    parser.add_argument("what", choices=["serving"], help=argparse.SUPPRESS)
    parser.add_argument(
        "--url", help="a server that runs, up to /v1; without it one of --model is started and ended here"
    )
    parser.add_argument("--api-key", help="its key (default: the variable OPENAI_API_KEY)")
    parser.add_argument("--served-model-name", help="what it calls the model (default: the first of its models)")
    add_json(parser)
    add_model(parser.add_argument_group("the model"))
    load = parser.add_argument_group("the load")
    load.add_argument("--requests", type=int, default=64, help="how many are measured (default 64)")
    load.add_argument(
        "--max-concurrency", type=int, default=8, help="requests under way at a time (default 8): closed loop"
    )
    load.add_argument("--request-rate", type=float, help="requests a second, at random moments (Poisson): open loop")
    load.add_argument(
        "--images", choices=IMAGES, default="natural", help="smooth pictures, random pixels, or text alone"
    )
    load.add_argument("--image-size", type=int, default=448, help="pixels of a side (default 448)")
    load.add_argument("--max-tokens", type=int, default=32, help="tokens of each answer, exactly (default 32)")
    load.add_argument(
        "--cache", choices=CACHES, default="cold", help="a new picture each, or pictures asked about before"
    )
    load.add_argument("--seed", type=int, default=0, help="seed of pictures and of arrivals (default 0)")
    figures = parser.add_argument_group("the figures")
    figures.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help=f"objectives of {', '.join(OBJECTIVES)} in milliseconds, as ttft:500: how many a second meet them all",
    )
    figures.add_argument("--in-process", action="store_true", help="the engine without HTTP too, in turns")
    figures.add_argument("--warmup", type=int, default=2, help="requests beforehand, not measured (default 2)")
    figures.add_argument("--rounds", type=int, default=1, help="rounds of everything; medians are shown (default 1)")


def run(args: argparse.Namespace) -> int:
    check_ranges(args, RANGES)
    objectives = _objectives(args.goodput)
    if args.url is not None and args.in_process:
        raise ConfigError("--in-process is for a server that is started here", hint="Leave --url out.")
    from pocketvlm.benchmark.serving import targets
    from pocketvlm.benchmark.serving.run import Plan, median_of
    from pocketvlm.benchmark.serving.workload import Workload

    key = args.api_key if args.api_key is not None else os.environ.get("OPENAI_API_KEY")
    with ExitStack() as stack:
        url, vlm = args.url, None
        if url is None:
            options = [f"--{name}={value}" for name in ("model", *PLACES) if (value := getattr(args, name)) != "auto"]
            url, key = stack.enter_context(targets.own_server(options)), None
            if args.in_process:
                vlm = stack.enter_context(loaded(args))
        model = args.served_model_name or asyncio.run(targets.name_of_model(url, key))
        workload = Workload(
            requests=args.requests,
            images=args.images,
            side=args.image_size,
            cache=args.cache,
            max_tokens=args.max_tokens,
            seed=args.seed,
            model=model,
        )
        plan = Plan(
            max_concurrency=args.max_concurrency,
            request_rate=args.request_rate,
            objectives=objectives,
            warmup=args.warmup,
            rounds=args.rounds,
        )
        rounds = asyncio.run(_measure(url, key, vlm, workload, plan))
    found = {name: median_of(figures) for name, figures in rounds.items()}
    facts = {
        "model": model,
        "machine": processor_name(),
        "threads": usable_cores(),
        **{name: getattr(args, name) for name in ("requests", "images", "image_size", "cache", "max_tokens", "rounds")},
        **(
            {"max_concurrency": args.max_concurrency}
            if args.request_rate is None
            else {"request_rate": args.request_rate}
        ),
        "url": args.url,
    }
    if args.json:
        own = found.pop("http")
        put_json(facts | own | {name.replace("-", "_"): figures for name, figures in found.items()})
    else:
        _print(facts, found)
    return 1 if any(figures["failed"] for figures in found.values()) else 0


async def _measure(
    url: str, key: str | None, vlm: VLM | None, workload: Workload, plan: Any
) -> dict[str, list[dict[str, Any]]]:
    from pocketvlm.benchmark.serving import targets
    from pocketvlm.benchmark.serving.run import measure

    async with AsyncExitStack() as stack:
        asked = {"http": await stack.enter_async_context(targets.by_http(url, key))}
        if vlm is not None:
            asked["in-process"] = await stack.enter_async_context(targets.in_process(vlm))
        with progress_bars() as report:
            return await measure(asked, workload, plan, lambda n, of: report("Answering", n, of) if report else None)


def _objectives(given: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, _, limit = text.partition(":")
        try:
            found[name] = OBJECTIVE.check("--goodput", float(limit))
        except ValueError:
            found.clear()
        if name not in OBJECTIVES or name not in found:
            raise ConfigError(f"--goodput {text!r:.40} is no objective", hint="Give them as ttft:500 tpot:50.")
    return found


def _print(facts: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None)
    for name in ("", "mean", "median", "P99"):
        table.add_column(name, justify="right" if name else "left")
    lines = []
    for who, figures in found.items():
        where = f" {who}" if len(found) > 1 else ""
        for label in ("TTFT", "TPOT", "ITL", "E2EL"):
            cells = (figures[f"{word}_{label.lower()}_ms"] for word in ("mean", "median", "p99"))
            table.add_row(f"{label}{where}", *("–" if cell is None else f"{cell:,.1f} ms" for cell in cells))
        good = f", {figures['request_goodput']:g} of them in time" if "request_goodput" in figures else ""
        lines.append(
            f"{where.strip() or 'server'}: {figures['request_throughput']:g} requests/s{good}, "
            f"{figures['image_throughput']:g} images/s, "
            f"{figures['output_throughput']:g} output tokens/s, {figures['total_token_throughput']:g} tokens/s in all; "
            f"{figures['completed']} completed, {figures['failed']} failed, "
            f"{figures['peak_concurrency']} at most at a time"
        )
        lines += [f"  {count} failed: {reason}" for reason, count in figures["failures"].items()]
    at_once, rate = facts.get("max_concurrency"), facts.get("request_rate")
    load = f"{rate:g} a second" if at_once is None else f"{at_once} at a time"
    asked = f"{facts['requests']} requests, {load}, {facts['max_tokens']} tokens each"
    pictures = "" if facts["images"] == "none" else f", {facts['images']} pictures of {facts['image_size']}²"
    where = f"{facts['model']} on {facts['machine']}, {facts['threads']} threads"
    put_rich(f"{where}: {asked}{pictures}, cache {facts['cache']}", *lines, table)
