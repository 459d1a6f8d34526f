#!/usr/bin/env python3
"""Pages a second of `extract` against the bare engine, which gets the same requests prepared before the clock starts.

    python benchmarks/extract_throughput.py [--model DIR …] [--pages 64] [--rounds 5] [--cores 2]

Draws pages of text as PDF, PNG and JPEG files. In every round, in turns, `documents.extract` reads, draws, cuts and
asks about them, and the engine alone answers the same requests. Caches are off, so that neither profits from the other;
the ratio is the median of the rounds' ratios. How much of the work is preparation the table says as well: as it runs
beside the engine, on few cores it takes time from it.

A table for people, then one line of JSON a model. Wants `pip install 'pocketvlm[documents,structured]'`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import pocketvlm
from pocketvlm import documents
from pocketvlm.api.many import answer_many
from pocketvlm.documents.extracting import extraction
from pocketvlm.documents.inputs import Document, find_files, open_documents
from pocketvlm.documents.journal import Done
from pocketvlm.documents.pages import CONCURRENCY, PageTask, pages_to_ask, request_of
from pocketvlm.documents.schema import schema_of
from pocketvlm.engine.config import EngineConfig
from pocketvlm.machine import processor_name
from pocketvlm.prompts import packaged
from pocketvlm.synthetic import make_sample

KINDS = ("PDF", "PNG", "JPEG")
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 40}, "total": {"type": "string", "maxLength": 16}},
    "required": ["title", "total"],
    "additionalProperties": False,
}


def make_pages(folder: Path, count: int, side: int) -> None:
    """Pages of `side` pixels, each its own."""
    for number in range(count):
        picture = Image.fromarray(make_sample("paragraph", (7, number), "heldout", 0).image)
        picture = picture.resize((side, side * picture.height // picture.width), Image.Resampling.BICUBIC)
        kind, file = KINDS[number % len(KINDS)], io.BytesIO()
        picture.save(file, kind)
        (folder / f"{number:04}.{kind.lower()}").write_bytes(file.getvalue())


def by_extract(vlm: pocketvlm.VLM, folder: Path, options: Mapping[str, Any]) -> float:
    """Seconds for all pages, from files to rows."""
    began = time.perf_counter()
    for row in documents.extract(vlm, str(folder), SCHEMA, **options):
        if row["error"] and "cut off" not in row["error"]:
            raise SystemExit(f"{row['file']}: {row['error']}")
    return time.perf_counter() - began


def by_engine(vlm: pocketvlm.VLM, opened: Sequence[Document], task: PageTask) -> tuple[float, float]:
    """Seconds for all answers, and how long they were prepared before, on one core."""
    began = time.perf_counter()
    requests = [request_of(key, document, task) for key, document in pages_to_ask(opened, Done())]
    jobs = [vlm.prepare(messages, options) for _, messages, options in requests]
    prepared = time.perf_counter()

    def prepare(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> Any:
        return jobs[messages[0]["number"]]

    waiting = ((number, [{"number": number}], {}) for number in range(len(jobs)))
    for _, outcome in answer_many(vlm.shared, prepare, waiting, CONCURRENCY):
        if isinstance(outcome, Exception):
            raise outcome
    return time.perf_counter() - prepared, prepared - began


def measured(model: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    config = EngineConfig(prefix_cache_memory=0, encoder_cache_memory=0)
    options = {"max_tokens": args.max_tokens, "max_slice_nums": args.max_slice_nums}
    options = {name: value for name, value in options.items() if value is not None}
    task = extraction(schema_of(SCHEMA), packaged()["extract"], options)
    opened = list(open_documents(find_files([str(folder)])))
    rounds: list[tuple[float, float, float]] = []
    with pocketvlm.load(model, engine_config=config) as vlm:
        vlm.progress = None
        by_engine(vlm, opened[:2], task)  # warm: the grammar, and what is compiled at the first request
        for number in range(args.rounds):
            if number % 2:
                engine, prepared = by_engine(vlm, opened, task)
                whole = by_extract(vlm, folder, options)
            else:
                whole = by_extract(vlm, folder, options)
                engine, prepared = by_engine(vlm, opened, task)
            rounds.append((whole, engine, prepared))
        name = vlm.name
    pages = len(opened)
    extract, bare, preparing = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "model": Path(name).name,
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "pages": pages,
        "rounds": args.rounds,
        "extract_pages_per_second": round(pages / extract, 3),
        "engine_pages_per_second": round(pages / bare, 3),
        "ratio": round(statistics.median(engine / whole for whole, engine, _ in rounds), 3),
        "preparing_share": round(preparing / bare, 3),
    }


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--model", nargs="+", default=["nano"], help="names or directories, also of bundles (default nano)"
    )
    cli.add_argument("--pages", type=int, default=64, help="default 64")
    cli.add_argument("--side", type=int, default=896, help="pixels of the width of a page (default 896)")
    cli.add_argument("--rounds", type=int, default=5, help="default 5")
    cli.add_argument("--cores", type=int, default=2, help="that the process may use (default 2)")
    cli.add_argument("--max-tokens", type=int, default=64)
    cli.add_argument("--max-slice-nums", type=int, help="as of `extract`")
    args = cli.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        make_pages(Path(folder), args.pages, args.side)
        for model in args.model:
            found.append(measured(model, Path(folder), args))
    print("| model | extract, pages/s | engine, pages/s | ratio | preparing alone ÷ engine |")
    print("| --- | --- | --- | --- | --- |")
    for one in found:
        rates = f"{one['extract_pages_per_second']} | {one['engine_pages_per_second']}"
        print(f"| {one['model']} | {rates} | {one['ratio']} | {one['preparing_share']} |")
    for one in found:
        print(json.dumps(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
