"""pocketvlm read FILE… --out DIR: the text of documents, a file each, and an index of their pages."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
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
from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Done, Value, names_written, open_done
from pocketvlm.documents.pages import keys_of
from pocketvlm.documents.reading import (
    FAILED,
    FORMATS,
    INDEX,
    JOURNAL,
    OWN_FILES,
    TextLayers,
    index_rows,
    make_folder,
    output_names,
    text_layers,
    transcription,
    written,
)
from pocketvlm.documents.tables import write_rows
from pocketvlm.errors import ConfigError
from pocketvlm.files import check_output, file_ids, is_partial, whole_file

REWRITE = join_address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm read [options] [FILE ...] [--list LIST] --out DIR"
    parser.epilog = (
        f"DIR/{INDEX} has a line for each page. DIR/{JOURNAL} keeps the pages that are done. Run the same command "
        f"again to resume a stopped run; with --overwrite a finished one reads only what is new. {EXIT}"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder, made if it is not there")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="markdown", help="format of the files (default markdown)"
    )
    layer = "add the text that a PDF itself holds to the index, beside what the model reads"
    parser.add_argument("--text-layer", action="store_true", help=layer)
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier run")
    add_document_arguments(parser)


def run(args: argparse.Namespace) -> int:
    with output_sent(args, besides=[f"/{FAILED}"]):
        summary = _run(args)
    return status_of(summary, partial(_print, args))


def _is_ours(path: Path, out: Path) -> bool:
    """Whether a file is one that a run writes: below `out`, and of a name as its files have."""
    return _is_named_so(path) and absolute(out) in absolute(path).parents


def _is_sent(url: str, out: str) -> bool:
    """The same of addresses, where the output is elsewhere."""
    return _is_named_so(Path(url)) and url.startswith(f"{out}/")


def _is_named_so(path: Path) -> bool:
    return path.name in OWN_FILES or path.suffix in FORMATS.values() or is_partial(path)


def _run(args: argparse.Namespace) -> dict[str, Any] | None:
    """What was done, or None after a dry run."""
    began = time.perf_counter()
    prompt, prompts = prompts_of(args, args.format)
    options = check_options(args)
    out = args.shown_out.rstrip("/")
    documents = open_all(
        args,
        lambda path: _is_ours(path, args.out),
        lambda url: _is_sent(url, out),
        # A list may end as texts do, and lie where they go: nothing is written over it.
        lambda path: path.suffix not in FORMATS.values() and _is_ours(path, args.out),
    )
    names = dict(zip(documents, output_names(documents, args.format), strict=True))
    job = DocumentJob(args, documents, transcription(prompt, options), args.out / JOURNAL, {"prompts": prompts.version})
    if args.dry_run:
        job.dry_run()
        return None
    index, failures = args.out / INDEX, args.out / FAILED
    inputs = [*files_read(directory_of(args)), *(document.path for document in documents), *lists_of(args)]
    _check(args, job, [index, failures, *(args.out / name for name in names.values())], inputs)
    make_folder(args.out)
    done: Done

    def write(document: Document, values: list[Value]) -> None:
        if document.error:
            return
        out = args.out / names[document]
        make_folder(out.parent)
        done.note_written(names[document].as_posix())
        with whole_file(out) as file:
            file.write(written(document, values, args.format).encode(errors="replace"))

    with open_done(args.out / JOURNAL, job.identity()) as done:
        job.run(done, write)

        def rows(layers: TextLayers | None = None) -> Iterator[dict[str, Any]]:
            """From the journal each time: of a million pages no list would be short."""
            for document in documents:
                values = [done.get(key) or {} for key in keys_of(document)]
                out = None if document.error else str(names[document])
                yield from index_rows(document, values, out, layers=layers)

        failed = sum(bool(row["error"]) for row in rows())
        cut_off = sum(row["finish_reason"] == "length" for row in rows())
        if failed or failures.exists():
            write_rows(failures, lambda: (row for row in rows() if row["error"]))
        with text_layers(args.text_layer) as layers:
            write_rows(index, lambda: rows(layers))
        report_failures((row for row in rows() if row["error"]), failed)
    if cut_off:
        say(f"{cut_off} of {job.pages} pages were cut off at the longest answer ({INDEX} says which): see --max-tokens")
    return {
        "documents": len(documents),
        "pages": job.pages,
        "failed": failed,
        "cut_off": cut_off,
        "seconds": round(time.perf_counter() - began, 3),
        "out": args.shown_out,
    }


def _print(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    if args.json:
        put_json(summary)
    else:
        counts = f"{summary['documents']} documents, {summary['pages']} pages, {summary['failed']} failed"
        put(f"{counts}, {summary['seconds']:.1f} s: {summary['out']}")


def _check(args: argparse.Namespace, job: DocumentJob, outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse what must not be written over, before any page is read: inputs, and without --overwrite what is there and
    is not of an earlier run that was stopped.

    Args:
        outputs: the index, the list of failures, and the files of documents.
    """
    read = file_ids(inputs)
    was_stopped = job.journal.exists() and not outputs[0].exists()
    ours = {args.out / name for name in names_written(job.journal)} | {outputs[1]} if was_stopped else set()
    for out in outputs:
        if not out.parent.is_dir():
            continue  # it will be made
        if check_output(out, read=read) and not (args.overwrite or out in ours):
            raise ConfigError(f"{out} is already there", hint="Pass --overwrite, or give another folder.")
