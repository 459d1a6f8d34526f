"""pocketvlm bench: how fast a model answers here, and against whom."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketvlm.benchmark.lines import LINES, Line, line_of
from pocketvlm.cli.common import add_json, check_ranges, directory_of, files_read, is_file, progress_bars
from pocketvlm.cli.console import put_json, put_rich
from pocketvlm.errors import ConfigError, MissingExtraError, need
from pocketvlm.files import check_output
from pocketvlm.machine import processor_name, usable_cores
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.ranges import Range

WHAT = {
    "offline": "stages of single answers and of a batch, each runtime in a process of its own",
    "serving": "a server under load; see pocketvlm bench serving --help",
    "tuning": "steps of fine-tuning, against transformers + peft; see pocketvlm bench tuning --help",
    "growth": "time and memory of the first of --runs against views, prompt length and batch",
}
RUNS = ("torch", "onnx:int8", "onnx:int4")
PEERS = ("transformers", "llama.cpp")
RANGES = {"rounds": Range(int, 1, Line.rounds)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=WHAT, help="; ".join(f"{name}: {text}" for name, text in WHAT.items()))
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="RUNTIME[:QUANTIZATION]",
        help="what runs: torch, onnx:none, onnx:int8, onnx:int4 (default: torch if it is there, onnx:int8 onnx:int4)",
    )
    parser.add_argument("--against", nargs="+", default=[], choices=PEERS, help="also time these programs, in turns")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], help="with llama.cpp: the decoder's files")
    parser.add_argument("--mmproj", type=Path, help="with llama.cpp: the tower's file")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), help="what is timed (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each runs, in turns (default 5)")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="with growth: draw the curves (extra plots)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_ranges(args, RANGES)
    if bool(args.gguf) != ("llama.cpp" in args.against):
        raise ConfigError("--gguf and --against llama.cpp belong together", hint="Give both, or neither.")
    for file in (*args.gguf, args.mmproj):
        if file is not None and not is_file(file):  # said now, not when the others have been loaded
            raise ConfigError(f"{str(file)!r:.80} does not exist", hint="Name GGUF files with --gguf and --mmproj.")
    if args.plot is not None:
        if args.what != "growth":
            raise ConfigError("--plot is for growth only", hint="Leave it out.")
        if args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ConfigError(f"--plot {args.plot} is no .png, .pdf or .svg", hint="Give it such a name.")
        check_output(args.plot)  # before a model is looked up, maybe downloaded
    directory = directory_of(args)
    if args.plot is not None:
        check_output(args.plot, inputs=files_read(directory))
    specs = _specs(args)
    if args.what == "growth":
        return _growth(args, directory, specs[0])
    from pocketvlm.benchmark import ceilings, offline

    _make_bundles(directory, specs)
    with progress_bars() as report:
        results = offline.compete(specs, args.lines, args.rounds, report)
    best = ceilings.measure()
    facts = {"model": args.model, "machine": processor_name(), "threads": usable_cores(), "rounds": args.rounds}
    if args.json:
        put_json(facts | {"ceilings": _rounded(best), "results": [_as_json(result, best) for result in results]})
    else:
        _print(facts, best, results, args.lines)
    return int(any(result.error for result in results))


def _make_bundles(directory: ModelDirectory, specs: list[tuple[str, tuple[Any, ...]]]) -> None:
    """Make them here, so that the memory this takes is not counted as that of running them."""
    from pocketvlm.api.loading import ready_bundle

    for kind, arguments in specs:
        if kind == "pocketvlm" and arguments[1] == "onnx":
            with progress_bars() as report:
                ready_bundle(directory, arguments[2], report)


def _growth(args: argparse.Namespace, directory: ModelDirectory, spec: tuple[str, tuple[Any, ...]]) -> int:
    from pocketvlm.benchmark import growth

    if args.plot is not None and find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plots")
    _make_bundles(directory, [spec])
    with progress_bars() as report:
        points = growth.measure(spec, list(growth.SERIES), args.rounds, report)
    if args.plot is not None:
        growth.plot(points, args.plot)
    if args.json:
        rows = [{"line": p.line, "seconds": p.seconds, "rate": p.rate, "peak_bytes": p.peak_bytes} for p in points]
        put_json({"model": args.model, "machine": processor_name(), "points": rows})
        return 0
    from rich.table import Table

    table = Table("", "seconds", "rate", "peak memory", box=None)
    for p in points:
        line = line_of(p.line)
        table.add_row(line.label, f"{p.seconds:.4g}", f"{p.rate:,.4g} {line.unit}/s", f"{p.peak_bytes / 2**30:.2f} GiB")
    put_rich(table)
    return 0


def _specs(args: argparse.Namespace) -> list[tuple[str, tuple[Any, ...]]]:
    from pocketvlm.bundle import parse_quantization

    specs: list[tuple[str, tuple[Any, ...]]] = []
    for text in args.runs or RUNS[find_spec("torch") is None :]:
        runtime, _, quantization = text.partition(":")
        if runtime not in ("torch", "onnx") or (runtime == "torch" and quantization):
            raise ConfigError(f"--runs {text!r} is unknown", hint="Use torch, onnx:none, onnx:int8 or onnx:int4.")
        if runtime == "onnx":
            parse_quantization(quantization or "int8")
        specs.append(("pocketvlm", (args.model, runtime, quantization or "int8")))
    if "transformers" in args.against:
        need("torch", "torch", "reference")
        from pocketvlm.kernels.fastest_dtype import fastest_dtype

        dtypes = dict.fromkeys(("float32", str(fastest_dtype()).removeprefix("torch.")))
        specs += [("transformers", (args.model, dtype)) for dtype in dtypes]

    specs += [("llama.cpp", (file, args.mmproj, usable_cores())) for file in args.gguf]
    return specs


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def _as_json(result: Any, best: dict[str, float]) -> dict[str, Any]:
    medians = {line: result.median(line) for line in result.seconds}
    rates = {line: LINES[line].amount / seconds for line, seconds in medians.items() if seconds}
    return {
        "name": result.name,
        **({"error": result.error} if result.error else {}),
        "peak_bytes": result.peak_bytes,
        "seconds": _rounded({line: seconds for line, seconds in medians.items() if seconds}),
        "rates": _rounded(rates),
        "share_of_ceiling": _rounded({line: result.share(line, best) for line in result.work if line in medians}),
    }


def _print(facts: dict[str, Any], best: dict[str, float], results: list[Any], lines: list[str]) -> None:
    from rich.table import Table

    from pocketvlm.benchmark.offline import ratio

    first = next(result for result in results if result.seconds)
    table = Table(box=None, padding=(0, 1))
    for name in ("", *(LINES[line].label for line in lines), "peak memory"):
        table.add_column(name, justify="right" if name else "left", max_width=22)
    for result in results:
        row = [result.name]
        for name in lines:
            seconds, times = result.median(name), ratio(result, first, name)
            cell = f"{LINES[name].amount / seconds:,.4g} {LINES[name].unit}/s" if seconds else "–"
            share = result.share(name, best)
            cell += f"\n{100 * share:.0f} % of {result.work[name].ceiling}" if share else ""
            row.append(cell + (f"\n{times:.2f} ×" if times and result is not first else ""))
        table.add_row(*row, f"{result.peak_bytes / 2**30:.2f} GiB" if result.peak_bytes else "")
    where = f"{facts['model']} on {facts['machine']}, {facts['threads']} threads"
    int8 = f"int8 {best['int8']:,.0f} GOP/s, " if "int8" in best else ""
    put_rich(
        f"{where}, medians of {facts['rounds']}, warm; × is against {first.name}",
        f"ceilings: {int8}fp32 {best['fp32']:,.0f} GFLOP/s, reading {best['read']:.1f} GB/s",
        table,
        *(f"{result.name} failed: {result.error}" for result in results if result.error),
    )
