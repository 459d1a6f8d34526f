"""pocketvlm batch IN.jsonl OUT.jsonl

Lines are those of OpenAI's batch files. While it runs, results are appended to OUT.jsonl.partial, whose first line says
what they are results of; when all are there, OUT.jsonl is written in the order of IN.jsonl and the partial file goes.
Of each line only its place is kept in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pocketvlm.batch.files import open_partial, read_lines
from pocketvlm.batch.run import answer_all
from pocketvlm.cli.common import (
    PICTURES,
    PLACES,
    SAMPLING,
    VIDEO,
    add_json,
    add_model,
    add_options,
    directory_of,
    loaded,
    options_of,
    print_json,
    progress_bars,
    read_media,
)
from pocketvlm.errors import ConfigError

# Prompt lookup is for single answers.
_SAMPLING = {name: option for name, option in SAMPLING.items() if name != "prompt_lookup_num_tokens"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm batch [options] IN.jsonl OUT.jsonl"
    parser.epilog = (
        "Options of pictures and sampling hold where a line does not say otherwise. A run that was stopped goes on "
        "when the same command is given again. Exit status: 0 every line was answered, 1 OUT.jsonl is written and "
        "holds failed lines, 2 wrong usage or input, 130 stopped."
    )
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="requests in the format of OpenAI's batch files")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="is written in the order of IN.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it is there")
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time (default 32)")
    parser.add_argument("--served-model-name", metavar="NAME", help="what lines call the model (default: as --model)")
    add_model(parser)
    add_options(parser, PICTURES, VIDEO, _SAMPLING)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.concurrency < 1:
        raise ConfigError(f"--concurrency {args.concurrency} is below 1")
    _check_output(args.input, args.output, args.overwrite)
    options = options_of(args, PICTURES, VIDEO, _SAMPLING)
    read_media(args, [], options)  # what is wrong with them is found before torch and weights are loaded
    model = args.served_model_name or args.model
    with progress_bars() as report:
        lines = read_lines(args.input, model, report)
    settings = {
        "input": lines.digest,
        "model": model,
        "weights": directory_of(args).fingerprint,
        "options": options,
        **{name: getattr(args, name) for name in PLACES},
    }
    partial = args.output.with_name(args.output.name + ".partial")
    began = time.perf_counter()
    with open_partial(partial, lines, settings) as results:
        resumed = results.done
        try:
            if resumed < len(lines):
                with loaded(args) as vlm, progress_bars() as report:
                    vlm.progress = None  # one bar is enough
                    answer_all(vlm, args.input, lines, results, options, model, args.concurrency, report)
            results.write(args.output)
        except KeyboardInterrupt:
            kept = f"{results.done} of {len(lines)} results are kept; the same command goes on from there"
            print(f"pocketvlm batch: stopped; {kept}", file=sys.stderr)
            return 130
    summary = {
        "requests": len(lines),
        "succeeded": len(lines) - results.failed,
        "failed": results.failed,
        "resumed": resumed,
        "seconds": round(time.perf_counter() - began, 3),
        "output_tokens": results.output_tokens,
    }
    if args.json:
        print_json(summary)
    else:
        earlier = f" ({resumed} by an earlier run)" if resumed else ""
        print(
            f"{summary['requests']} requests{earlier}: {summary['succeeded']} succeeded, {summary['failed']} failed, "
            f"{summary['output_tokens']} output tokens, {summary['seconds']:.1f} s"
        )
    return int(results.failed > 0)


def _check_output(requests: Path, out: Path, overwrite: bool) -> None:
    try:
        is_directory, exists = out.is_dir(), out.exists()
        is_input = exists and requests.exists() and out.samefile(requests)
    except OSError as error:
        raise ConfigError(f"{str(out)!r:.80} is no path to a file: {error.strerror}") from None
    if is_directory:
        raise ConfigError(f"{out} is a directory, expected a file to write", hint="Give it a name.")
    if is_input:
        raise ConfigError(f"{out} is both input and output", hint="Give OUT.jsonl another name.")
    if exists and not overwrite:
        raise ConfigError(f"{out} is already there", hint="Pass --overwrite, or give another name.")
