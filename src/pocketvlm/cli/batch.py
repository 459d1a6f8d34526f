"""pocketvlm batch IN.jsonl OUT.jsonl: a file of requests in the format of OpenAI's batches."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pocketvlm.batch.run import Answering, Summary, answer_here, check_paths, run_batch
from pocketvlm.batch.tables import is_table
from pocketvlm.cli import ray_options
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
from pocketvlm.cli.elsewhere import folder_of, output_sent, requests_here
from pocketvlm.cli.ray_options import add_ray, check_ray, fleet_of, join_address
from pocketvlm.errors import ConfigError, need
from pocketvlm.files import check_output
from pocketvlm.ranges import Range

# Prompt lookup is for single answers.
_SAMPLING = {name: option for name, option in SAMPLING.items() if name != "prompt_lookup_num_tokens"}
RANGES = {"concurrency": Range(int, 1), **ray_options.RANGES}
REWRITE = join_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm batch [options] IN.jsonl OUT.jsonl"
    parser.epilog = (
        "Options of pictures and sampling hold where a line does not say otherwise. Run the same command again to "
        "resume a stopped run. Exit status: 0 every line was answered, 1 OUT.jsonl is written and "
        "holds failed lines, or the disk is full, 2 wrong usage or input, 130 stopped."
    )
    requests = "requests in the format of OpenAI's batch files, or a table of them: IN.parquet"
    parser.add_argument("input", metavar="IN.jsonl", help=requests)
    parser.add_argument("output", metavar="OUT.jsonl", help="is written in the order of IN.jsonl; or OUT.parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it is there, an ordinary file")
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time (default 32)")
    parser.add_argument("--served-model-name", metavar="NAME", help="what lines call the model (default: as --model)")
    add_ray(parser)
    add_model(parser)
    add_adapter(parser)
    add_options(parser, PICTURES, VIDEO, _SAMPLING)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    check_ranges(args, RANGES)
    check_ray(args)
    with output_sent(args, "output"):
        summary = _run(args)
    with suppress(ReaderLeftError):  # whose leaving says nothing about the requests
        _print(summary, as_json=args.json)
    return int(summary.failed > 0)


def _run(args: argparse.Namespace) -> Summary:
    if is_table(args.output):
        need("pyarrow", "pyarrow", "tables")  # said before anything is asked
    check_paths(Path(args.input), args.output, overwrite=args.overwrite)
    if args.input == args.shown_out:
        raise ConfigError(f"{args.input:.200} is both input and output", hint="Give the output another name.")
    with requests_here(args.input) as requests:
        return _answered(args, requests)


def _answered(args: argparse.Namespace, requests: Path) -> Summary:
    options = options_of(args, PICTURES, VIDEO, _SAMPLING)
    read_media(args, [], options)  # what is wrong with them is found before torch and weights are loaded
    check_output(args.output, inputs=files_read(directory_of(args)))
    places = {name: getattr(args, name) for name in PLACES}
    return run_batch(
        requests,
        args.output,
        lambda: _answering(args),
        model=args.served_model_name or args.model,
        options=options,
        identity={"weights": directory_of(args).fingerprint, **places},
        overwrite=args.overwrite,
        folder=folder_of(args.input),
        place=f"{args.input}, {'row' if is_table(Path(args.input)) else 'line'}",
        bars=progress_bars,
    )


@contextmanager
def _answering(args: argparse.Namespace) -> Iterator[Answering]:
    if args.ray is None:
        with loaded(args, apart=True) as vlm:
            yield partial(answer_here, vlm, args.concurrency)
        return
    from pocketvlm.distributed.batching import answer_on

    with fleet_of(args) as fleet:
        yield partial(answer_on, fleet)


def _print(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        put_json(asdict(summary))
        return
    earlier = f" ({summary.resumed} by an earlier run)" if summary.resumed else ""
    put(
        f"{summary.requests} requests{earlier}: {summary.succeeded} succeeded, {summary.failed} failed, "
        f"{summary.output_tokens} output tokens, {summary.seconds:.1f} s"
    )
