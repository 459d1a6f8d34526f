"""pocketvlm bench tuning: steps of fine-tuning, here and by transformers + peft in turns."""

from __future__ import annotations

import argparse
from typing import Any

from pocketvlm.cli.common import add_json, check_ranges, directory_of, progress_bars
from pocketvlm.cli.console import put_json, put_rich
from pocketvlm.errors import ConfigError, need
from pocketvlm.machine import processor_name, usable_cores
from pocketvlm.ranges import Range
from pocketvlm.training.settings import METHODS, OPTIMISERS, PARTS, TuneSettings

AGAINST = ("peft", "none")
RANGES = {
    "steps": Range(int, 1, 10_000),
    "batch_size": Range(int, 1, 4096),
    "rank": Range(int, 1, 1024),
    "image_size": Range(int, 64, 8000),
    "words": Range(int, 1, 10_000),
    "seed": Range(int, 0, 2**32 - 1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.prog = "pocketvlm bench tuning"
    parser.usage = f"{parser.prog} [OPTION ...]"
    parser.description = (
        "Time steps of fine-tuning on pages that are made for it, against the usual loop of transformers and peft: the "
        "same samples, layers, rank, numbers and optimiser. The losses of the first step must agree."
    )
    parser.add_argument("what", choices=["tuning"], help=argparse.SUPPRESS)
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--against", choices=AGAINST, default="peft", help="peft (default), or none: ours alone")
    add_json(parser)
    learning = parser.add_argument_group("the learning")
    learning.add_argument("--method", choices=METHODS, default="lora", help="lora (default), qlora or full")
    learning.add_argument("--optimiser", choices=OPTIMISERS, default="adamw", help="optimiser of both (default adamw)")
    learning.add_argument(
        "--tune",
        type=lambda text: tuple(text.split(",")),
        default=("decoder",),
        metavar="PART,…",
        help=f"parts that learn (default decoder): {', '.join(PARTS)}",
    )
    learning.add_argument("--rank", type=int, default=16, help="rank of the LoRA matrices (default 16)")
    learning.add_argument("--steps", type=int, default=5, help="measured steps, after one warm-up step (default 5)")
    learning.add_argument("--batch-size", type=int, default=8, help="samples of a step (default 8)")
    data = parser.add_argument_group("the samples")
    data.add_argument("--image-size", type=int, default=448, help="pixels of a page's width (default 448)")
    data.add_argument(
        "--words", type=int, default=100, help="words of the longest answers; most are short (default 100)"
    )
    data.add_argument("--seed", type=int, default=0, help="seed of samples and adapters (default 0)")


def run(args: argparse.Namespace) -> int:
    check_ranges(args, RANGES)
    settings = TuneSettings(
        method=args.method,
        optimiser=args.optimiser,
        tune=args.tune,
        rank=args.rank,
        steps=args.steps + 1,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    if directory_of(args).kind == "bundle":
        raise ConfigError(f"{args.model} is a bundle of ONNX Runtime", hint="Tune the checkpoint it was made of.")
    need("torch", "torch", "tune")
    from pocketvlm.benchmark.tuning.contenders import Job
    from pocketvlm.benchmark.tuning.run import compete, ratios

    job = Job(model=args.model, settings=settings, device=args.device, side=args.image_size, words=args.words)
    with progress_bars() as report:
        found = compete(job, ["pocketvlm"] if args.against == "none" else ["pocketvlm", "peft"], report)
    options = ("model", "method", "optimiser", "tune", "rank", "steps", "batch_size", "image_size", "words", "seed")
    facts = {"machine": processor_name(), "threads": usable_cores(), **{name: getattr(args, name) for name in options}}
    times = ratios(*found) if len(found) > 1 else {}
    if args.json:
        put_json(facts | {"results": [one.figures() for one in found], "ratios": times})
    else:
        _print(facts, found, times)
    return 0


def _print(facts: dict[str, Any], found: list[Any], times: dict[str, float]) -> None:
    from rich.table import Table

    table = Table("", "samples/s", "tokens/s", "peak memory", "first loss", box=None)
    for one in found:
        row = one.figures()
        memory = f"{row['peak_bytes'] / 2**30:.2f} GiB"
        table.add_row(
            row["name"], f"{row['samples_s']:.3g}", f"{row['tokens_s']:.4g}", memory, f"{row['losses'][0]:.5f}"
        )
    put_rich(
        f"{facts['method']} of {facts['model']} on {facts['machine']}, {facts['threads']} threads, medians of "
        f"{facts['steps']} steps of {facts['batch_size']} samples, warm",
        table,
        *([f"{times['speed']:.2f} × the speed, {times['memory']:.2f} × the memory"] if times else []),
    )
