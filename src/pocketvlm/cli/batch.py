"""pocketvlm batch IN.jsonl OUT.jsonl: a file of requests in the format of OpenAI's batches."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pocketvlm.batch.run import Summary, check_paths, run_batch
from pocketvlm.cli.common import (
    PICTURES,
    PLACES,
    SAMPLING,
    VIDEO,
    add_adapter,
    add_json,
    add_model,
    add_options,
    check_ranges,
    directory_of,
    files_read,
    loaded,
    options_of,
    progress_bars,
    read_media,
)
from pocketvlm.cli.console import ReaderLeftError, put, put_json
from pocketvlm.files import check_output
from pocketvlm.ranges import Range

# Prompt lookup is for single answers.
_SAMPLING = {name: option for name, option in SAMPLING.items() if name != "prompt_lookup_num_tokens"}
RANGES = {"concurrency": Range(int, 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm batch [options] IN.jsonl OUT.jsonl"
    parser.epilog = (
        "Options of pictures and sampling hold where a line does not say otherwise. A run that was stopped goes on "
        "when the same command is given again. Exit status: 0 every line was answered, 1 OUT.jsonl is written and "
        "holds failed lines, or the disk is full, 2 wrong usage or input, 130 stopped."
    )
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="requests in the format of OpenAI's batch files")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="is written in the order of IN.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it is there, an ordinary file")
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time (default 32)")
    parser.add_argument("--served-model-name", metavar="NAME", help="what lines call the model (default: as --model)")
    add_model(parser)
    add_adapter(parser)
    add_options(parser, PICTURES, VIDEO, _SAMPLING)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_ranges(args, RANGES)
    check_paths(args.input, args.output, overwrite=args.overwrite)
    options = options_of(args, PICTURES, VIDEO, _SAMPLING)
    read_media(args, [], options)  # what is wrong with them is found before torch and weights are loaded
    check_output(args.output, inputs=files_read(directory_of(args)))
    places = {name: getattr(args, name) for name in PLACES}
    summary = run_batch(
        args.input,
        args.output,
        lambda: loaded(args),
        model=args.served_model_name or args.model,
        options=options,
        identity={"weights": directory_of(args).fingerprint, **places},
        concurrency=args.concurrency,
        overwrite=args.overwrite,
        bars=progress_bars,
    )
    with suppress(ReaderLeftError):  # whose leaving says nothing about the requests
        _print(summary, as_json=args.json)
    return int(summary.failed > 0)


def _print(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        put_json(asdict(summary))
        return
    earlier = f" ({summary.resumed} by an earlier run)" if summary.resumed else ""
    put(
        f"{summary.requests} requests{earlier}: {summary.succeeded} succeeded, {summary.failed} failed, "
        f"{summary.output_tokens} output tokens, {summary.seconds:.1f} s"
    )
