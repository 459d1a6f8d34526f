"""pocketvlm extract FILE… --schema S --out rows.jsonl: a row of each document, kept to a schema."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pocketvlm.cli.common import (
    PICTURES,
    PLACES,
    SAMPLING,
    add_adapter,
    add_json,
    add_model,
    add_options,
    check_ranges,
    check_text,
    directory_of,
    loaded,
    options_of,
    progress_bars,
    read_media,
)
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.documents.extracting import PROMPT, PROMPT_VERSION, answer_pages, rows_of
from pocketvlm.documents.inputs import find_files, open_documents
from pocketvlm.documents.journal import open_done
from pocketvlm.documents.schema import read_schema
from pocketvlm.documents.tables import check_suffix, write_rows
from pocketvlm.errors import ConfigError
from pocketvlm.files import check_output
from pocketvlm.ranges import Range

RANGES = {"concurrency": Range(int, 1)}
_SAMPLING = {"max_tokens": SAMPLING["max_tokens"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm extract [options] FILE ... --schema SCHEMA --out rows.jsonl|rows.csv"
    parser.epilog = (
        "OUT.journal keeps the pages that are done: the same command goes on after a stop, and with --overwrite reads "
        "only what is new. Exit status: 0 all were read, 1 OUT is written and holds failed rows (OUT.failed.jsonl "
        "lists them), 2 wrong usage or input, 130 stopped."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="documents and pictures, folders, or patterns")
    schema = "receipt, invoice, business_card, table, form; a JSON schema file; module:Class; or 'total: number, …'"
    parser.add_argument("--schema", required=True, help=schema)
    parser.add_argument("--out", type=Path, required=True, help="rows.jsonl or rows.csv")
    parser.add_argument("--per", choices=("document", "page"), default="document", help="what a row is of")
    parser.add_argument("--prompt", default=PROMPT, help="what the model is asked")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there, an ordinary file")
    parser.add_argument("--concurrency", type=int, default=8, help="pages under way at a time (default 8)")
    add_model(parser)
    add_adapter(parser)
    add_options(parser, PICTURES, _SAMPLING)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    check_ranges(args, RANGES)
    check_text("the prompt", args.prompt)
    schema = read_schema(args.schema)
    check_suffix(args.out)
    names = find_files(args.files)
    inputs = [Path(name) for name in names]
    if check_output(args.out, inputs=inputs) and not args.overwrite:
        raise ConfigError(f"{args.out} is already there", hint="Pass --overwrite, or give another name.")
    failed_path = args.out.with_name(args.out.name + ".failed.jsonl")
    check_output(failed_path, inputs=inputs)
    options = {"max_tokens": 1024, **options_of(args, PICTURES, _SAMPLING)}
    read_media(args, [], options)  # what is wrong with them is found before torch and weights are loaded
    documents = list(open_documents(names))
    if not any(document.pages for document in documents):
        raise ConfigError(f"nothing can be read: {documents[0].error}", hint="Name documents or pictures.")
    settings = {
        "weights": directory_of(args).fingerprint,
        **{name: getattr(args, name) for name in PLACES},
        "schema": json.dumps(schema),  # as text: the order of the fields is that of the answers
        "prompt": args.prompt,
        "prompt_version": PROMPT_VERSION,
        "options": options,
    }
    with open_done(args.out.with_name(args.out.name + ".journal"), settings) as done:
        keys = {(document.digest, page) for document in documents for page in document.pages}
        count = sum(done.get(key) is not None for key in keys)
        try:
            if count < len(keys):
                with ExitStack() as stack:
                    vlm = stack.enter_context(loaded(args))
                    bar = stack.enter_context(progress_bars())
                    vlm.progress = None  # one bar is enough

                    def report() -> None:
                        nonlocal count
                        count += 1
                        if bar:
                            bar("Pages", count, len(keys))

                    answer_pages(
                        vlm,
                        documents,
                        done,
                        schema,
                        prompt=args.prompt,
                        options=options,
                        concurrency=args.concurrency,
                        report=report,
                    )
        except KeyboardInterrupt:
            kept = f"{count} of {len(keys)} pages are kept; the same command goes on from there"
            raise KeyboardInterrupt(kept) from None
        rows = list(rows_of(documents, done, per_page=args.per == "page"))
    failed = [{name: row[name] for name in row if name not in ("data", "confidence")} for row in rows if row["error"]]
    if failed or failed_path.exists():  # that of an earlier run is no longer true
        write_rows(failed_path, failed)
    write_rows(args.out, rows)
    summary: dict[str, Any] = {
        "documents": len(documents),
        "pages": sum(len(document.pages) for document in documents),
        "rows": len(rows),
        "failed": len(failed),
        "seconds": round(time.perf_counter() - began, 3),
        "out": str(args.out),
    }
    for row in failed:
        say(f"{row['file']}: {row['error']}")
    if args.json:
        put_json(summary)
    else:
        put(", ".join(f"{value} {name}" for name, value in summary.items() if name != "out") + f" → {args.out}")
    return int(bool(failed))
