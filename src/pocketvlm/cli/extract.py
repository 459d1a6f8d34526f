"""pocketvlm extract FILE… --schema S --out rows.jsonl: a row of each document, kept to a schema."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from pocketvlm.cli.common import directory_of, files_read
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.cli.document_job import (
    EXIT,
    DocumentJob,
    absolute,
    add_document_arguments,
    check_options,
    lists_of,
    open_all,
    prompts_of,
    report_failures,
)
from pocketvlm.cli.elsewhere import output_sent
from pocketvlm.cli.ray_options import join_address
from pocketvlm.documents.calibration import Calibration
from pocketvlm.documents.extracting import extraction, rows_done
from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Value, open_done
from pocketvlm.documents.review import MAX_PAGES, Doubtful, doubtful_pages, review_page
from pocketvlm.documents.schema import NAMES, read_schema
from pocketvlm.documents.tables import ARRAYS, check_table, second_table, write_rows
from pocketvlm.errors import ConfigError
from pocketvlm.files import check_output, file_ids, whole_file
from pocketvlm.ranges import Range

REVIEW = Range(float, 0, 1)


REWRITE = join_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "pocketvlm extract [options] [FILE ...] [--list LIST] --schema SCHEMA --out rows.jsonl|.csv|.xlsx|.parquet"
    )
    parser.epilog = (
        "OUT.journal keeps the pages that are done: the same command goes on after a stop, and with --overwrite reads "
        f"only what is new. OUT.failed.jsonl lists what failed. {EXIT}"
    )
    schema = f"{', '.join(NAMES)}; a JSON schema file; module:Class of Pydantic; or 'total: number, shop: string'"
    parser.add_argument("--schema", required=True, help=schema)
    parser.add_argument("--out", required=True, help="rows.jsonl, .csv, .xlsx or .parquet")
    parser.add_argument("--per", choices=("document", "page"), default="document", help="what a row is of")
    arrays = "where the items of arrays go in .csv and .xlsx: columns of their own, or rows of a second table"
    parser.add_argument("--arrays", choices=ARRAYS, default="columns", help=arrays)
    review = "write pages with a field below this confidence to OUT.review.html, to be corrected there"
    parser.add_argument("--review", type=float, metavar="0.8", help=review)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there, an ordinary file")
    add_document_arguments(parser)


def run(args: argparse.Namespace) -> int:
    has_second = args.arrays == "table" and args.out.endswith(".csv")
    with output_sent(args, others=[_second_address(args.out)] if has_second else []):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    if args.review is not None:
        REVIEW.check("--review", args.review)
    schema, (prompt, prompts) = read_schema(args.schema), prompts_of(args, "extract")
    check_table(args.out, args.arrays)
    failed_path, journal, review = (
        args.out.with_name(f"{args.out.name}.{ending}") for ending in ("failed.jsonl", "journal", "review.html")
    )
    outputs = [args.out, *([second_table(args.out)] if args.arrays == "table" and args.out.suffix == ".csv" else [])]
    options = check_options(args)
    calibration = Calibration.of(directory_of(args), options)
    task = extraction(schema, prompt, options, calibration)
    documents = open_all(
        args, lambda path: _is_ours(absolute(path), absolute(args.out)), lambda url: _is_sent(url, args.shown_out)
    )
    read = file_ids([*files_read(directory_of(args)), *(document.path for document in documents), *lists_of(args)])
    for out in (*outputs, failed_path, review):
        if check_output(out, read=read) and out in outputs and not (args.overwrite or args.dry_run):
            raise ConfigError(f"{out} is already there", hint="Pass --overwrite, or give another name.")
    settings: dict[str, Any] = {"schema": json.dumps(schema), "prompts": prompts.version}
    if calibration is not None:
        settings["calibration"] = asdict(calibration)
    job = DocumentJob(args, documents, task, journal, settings)
    if args.dry_run:
        return job.dry_run()
    per_page = args.per == "page"
    with open_done(journal, job.identity()) as done:
        job.run(done, _nothing)
        failed: list[dict[str, Any]] = [
            {name: row[name] for name in ("file", "pages", "page", "error") if name in row}
            for row in rows_done(documents, done, per_page=per_page)
            if row["error"]
        ]
        if failed or failed_path.exists():  # that of an earlier run is no longer true
            write_rows(failed_path, lambda: failed)
        write_rows(args.out, lambda: rows_done(documents, done, per_page=per_page), arrays=args.arrays, schema=schema)
        if args.review is not None:
            doubtful = doubtful_pages(documents, done, args.review)
            _write_review(review, doubtful, task.question, args.review, schema)
        rows = sum(1 for _ in rows_done(documents, done, per_page=per_page))
    report_failures(failed, len(failed))
    _print(args, job, rows, len(failed), time.perf_counter() - began)
    return int(bool(failed))


def _write_review(
    out: Path, doubtful: Iterator[Doubtful], question: str, threshold: float, schema: dict[str, Any]
) -> None:
    pages = list(islice(doubtful, MAX_PAGES))
    more = sum(1 for _ in doubtful)
    if not pages:
        out.unlink(missing_ok=True)  # that of an earlier run is no longer true
        say(f"no page has a field below {threshold}: there is nothing to review")
        return
    with whole_file(out) as file:
        file.write(review_page(pages, question, threshold, schema).encode(errors="replace"))
    say(f"{out}: {len(pages)} pages to review" + (f", and {more} that did not fit" if more else ""))


def _is_ours(path: Path, out: Path) -> bool:
    """Whether a file is one that the run writes: `out`, or one beside it."""
    return path in (out, second_table(out)) or (path.parent == out.parent and path.name.startswith(f"{out.name}."))


def _is_sent(url: str, out: str) -> bool:
    """The same of addresses, where the output is elsewhere."""
    return url in (out, _second_address(out)) or url.startswith(f"{out}.")


def _second_address(out: str) -> str:
    """`second_table` of an address."""
    stem, dot, ending = out.rpartition(".")
    return f"{stem}.items{dot}{ending}"


def _nothing(_document: Document, _values: list[Value]) -> None:
    """Rows are written when all of them are there: a table's columns are known at its end."""


def _print(args: argparse.Namespace, job: DocumentJob, rows: int, failed: int, seconds: float) -> None:
    summary: dict[str, Any] = {
        "documents": len(job.documents),
        "pages": job.pages,
        "rows": rows,
        "failed": failed,
        "seconds": round(seconds, 3),
        "out": args.shown_out,
    }
    if args.json:
        put_json(summary)
    else:
        counts = f"{summary['documents']} documents, {job.pages} pages → {rows} rows, {failed} failed"
        put(f"{counts}, {seconds:.1f} s: {args.shown_out}")
