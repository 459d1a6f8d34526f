"""pocketvlm extract FILE… --schema S --out rows.jsonl: a row of each document, kept to a schema."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
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
    status_of,
)
from pocketvlm.cli.elsewhere import output_sent
from pocketvlm.cli.ray_options import join_address
from pocketvlm.documents.calibration import Calibration
from pocketvlm.documents.extracting import extraction, rows_done
from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Value, names_written, open_done
from pocketvlm.documents.review import MAX_PAGES, Doubtful, doubtful_pages, review_page
from pocketvlm.documents.schema import NAMES, read_schema
from pocketvlm.documents.tables import ARRAYS, check_table, second_table, write_rows
from pocketvlm.errors import ConfigError
from pocketvlm.files import check_output, file_ids, is_partial, whole_file
from pocketvlm.ranges import Range

REVIEW = Range(float, 0, 1)


REWRITE = join_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "pocketvlm extract [options] [FILE ...] [--list LIST] --schema SCHEMA --out rows.jsonl|.csv|.xlsx|.parquet"
    )
    parser.epilog = (
        "OUT.journal keeps the pages that are done. Run the same command again to resume a stopped run; with "
        f"--overwrite a finished one reads only what is new. OUT.failed.jsonl lists what failed. {EXIT}"
    )
    schema = f"{', '.join(NAMES)}; a JSON schema file; module:Class of Pydantic; or 'total: number, shop: string'"
    parser.add_argument("--schema", required=True, help=schema)
    parser.add_argument("--out", required=True, help="rows.jsonl, .csv, .xlsx or .parquet")
    parser.add_argument(
        "--per", choices=("document", "page"), default="document", help="one row per document or per page"
    )
    arrays = "where the items of arrays go in .csv and .xlsx: columns of their own, or rows of a second table"
    parser.add_argument("--arrays", choices=ARRAYS, default="columns", help=arrays)
    review = "write pages with a field below this confidence to OUT.review.html, to be corrected there"
    parser.add_argument("--review", type=float, metavar="0.8", help=review)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there, an ordinary file")
    add_document_arguments(parser)


def run(args: argparse.Namespace) -> int:
    has_second = args.arrays == "table" and args.out.endswith(".csv")
    besides = [".failed.jsonl", *([".review.html"] if args.review is not None else [])]
    with output_sent(args, others=[_second_address(args.out)] if has_second else [], besides=besides):
        summary = _run(args)
    return status_of(summary, partial(_print, args))


def _run(args: argparse.Namespace) -> dict[str, Any] | None:
    """What was done, or None after a dry run."""
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
    ours = set() if args.out.exists() else {args.out.with_name(name) for name in names_written(journal)}
    for out in (*outputs, failed_path, review):
        is_mine = out in outputs and out not in ours
        if check_output(out, read=read) and is_mine and not (args.overwrite or args.dry_run):
            raise ConfigError(f"{out} is already there", hint="Pass --overwrite, or give another name.")
    settings: dict[str, Any] = {"schema": json.dumps(schema), "prompts": prompts.version}
    if calibration is not None:
        settings["calibration"] = asdict(calibration)
    job = DocumentJob(args, documents, task, journal, settings)
    if args.dry_run:
        job.dry_run()
        return None
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
        if args.review is not None:
            doubtful = doubtful_pages(documents, done, args.review)
            shown = f"{args.shown_out}.review.html"
            _write_review(review, shown, doubtful, task.question, args.review, schema)
        for second in outputs[1:]:
            done.note_written(second.name)
        # Last: where it stands, all is there, and until then the same command goes on.
        write_rows(args.out, lambda: rows_done(documents, done, per_page=per_page), arrays=args.arrays, schema=schema)
        rows = sum(1 for _ in rows_done(documents, done, per_page=per_page))
    report_failures(failed, len(failed))
    return {
        "documents": len(documents),
        "pages": job.pages,
        "rows": rows,
        "failed": len(failed),
        "seconds": round(time.perf_counter() - began, 3),
        "out": args.shown_out,
    }


def _write_review(
    out: Path, shown: str, doubtful: Iterator[Doubtful], question: str, threshold: float, schema: dict[str, Any]
) -> None:
    pages = list(islice(doubtful, MAX_PAGES))
    more = sum(1 for _ in doubtful)
    text, count = review_page(pages, question, threshold, schema) if pages else ("", 0)
    if not count:
        out.unlink(missing_ok=True)  # that of an earlier run is no longer true
        why = "none of its pages can be read" if pages else f"no page has a field below {threshold}"
        say(f"{why}: there is nothing to review")
        return
    with whole_file(out) as file:
        file.write(text.encode(errors="replace"))
    say(f"{shown}: {count} pages to review" + (f", and {more} that did not fit" if more else ""))


def _is_ours(path: Path, out: Path) -> bool:
    """Whether a file is one that the run writes: `out`, or one beside it."""
    beside = path.parent == out.parent
    is_partial_of_ours = is_partial(path) and path.name.startswith((out.name[:32], second_table(out).name[:32]))
    return path in (out, second_table(out)) or (beside and (path.name.startswith(f"{out.name}.") or is_partial_of_ours))


def _is_sent(url: str, out: str) -> bool:
    """The same of addresses, where the output is elsewhere."""
    return url in (out, _second_address(out)) or url.startswith(f"{out}.")


def _second_address(out: str) -> str:
    """`second_table` of an address."""
    stem, dot, ending = out.rpartition(".")
    return f"{stem}.items{dot}{ending}"


def _nothing(_document: Document, _values: list[Value]) -> None:
    """Rows are written when all of them are there: a table's columns are known at its end."""


def _print(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    if args.json:
        put_json(summary)
    else:
        counts = f"{summary['documents']} documents, {summary['pages']} pages → {summary['rows']} rows"
        put(f"{counts}, {summary['failed']} failed, {summary['seconds']:.1f} s: {summary['out']}")
