"""What `read` and `extract` share: their arguments, the documents that are meant, and the walk through their pages."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pocketvlm.cli import ray_options
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
from pocketvlm.cli.console import ReaderLeftError, harmless, put, put_json, say
from pocketvlm.cli.ray_options import add_ray, check_ray, fleet_of
from pocketvlm.documents.estimate import estimate
from pocketvlm.documents.inputs import Document, find_files, open_documents
from pocketvlm.documents.journal import Done, Value, keys_done
from pocketvlm.documents.lists import COLUMN, STANDARD_INPUT, listed
from pocketvlm.documents.pages import CONCURRENCY, Asking, PageTask, answer_documents, ask_here, keys_of
from pocketvlm.errors import ConfigError
from pocketvlm.prompts import Prompts, read_prompts
from pocketvlm.ranges import Range, show
from pocketvlm.remote_files import is_remote

RANGES = {"concurrency": Range(int, 1), **ray_options.RANGES}
_SAMPLING = {name: SAMPLING[name] for name in ("max_tokens", "temperature", "repetition_penalty", "seed")}
EXIT = "Exit status: 0 all were read, 1 the output holds failures, or the disk is full, 2 wrong usage, 130 stopped."


def add_document_arguments(parser: argparse.ArgumentParser) -> None:
    """All but where the output goes."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="documents (a.pdf#2-5), pictures, folders, patterns")
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="LIST",
        help="more documents: a name a line (- for standard input), or a column of .jsonl, .csv or .parquet",
    )
    parser.add_argument(
        "--list-column", metavar="NAME", help=f"column of the list that holds the names (default {COLUMN})"
    )
    parser.add_argument("--prompt", help="what is asked about each page, in place of the packaged words")
    parser.add_argument("--prompts", type=Path, metavar="FILE.toml", help="words of your own for all kinds of output")
    parser.add_argument(
        "--dry-run", action="store_true", help="answer a few pages, and say what all of them would cost"
    )
    parser.add_argument(
        "--concurrency", type=int, default=CONCURRENCY, help=f"pages under way at a time (default {CONCURRENCY})"
    )
    add_ray(parser)
    add_model(parser)
    add_adapter(parser)
    add_options(parser, PICTURES, _SAMPLING)
    add_json(parser)


def prompts_of(args: argparse.Namespace, name: str) -> tuple[str, Prompts]:
    """The words for output of this kind, and all of them."""
    prompts = read_prompts(args.prompts)
    if args.prompt is None:
        return prompts[name], prompts
    check_text("--prompt", args.prompt)
    if not args.prompt.strip():
        raise ConfigError("--prompt is empty", hint="Say what is to be done with each page.")
    return args.prompt, prompts


def check_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of pictures and sampling; what is wrong with them is found before torch and weights are loaded."""
    check_ranges(args, RANGES)
    check_ray(args)
    if args.dry_run and args.ray is not None:
        raise ConfigError("--dry-run measures one engine of this machine", hint="Leave --ray out.")
    options = options_of(args, PICTURES, _SAMPLING)
    read_media(args, [], options)
    return options


def absolute(path: Path) -> Path:
    """The same path, however it is written; links stay."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def open_all(
    args: argparse.Namespace,
    ours: Callable[[Path], bool],
    sent: Callable[[str], bool] = lambda _url: False,
    is_own_list: Callable[[Path], bool] | None = None,
) -> list[Document]:
    """The documents that are meant; `ConfigError` where none of them can be read.

    Args:
        ours: tells files that the run itself writes.
        sent: tells addresses that it sends them to, where the output is elsewhere.
        is_own_list: tells lists that the run itself writes; None does it as `ours`.
    """
    if args.list_column is not None and not args.list:
        raise ConfigError("--list-column goes with --list", hint="Name the list.")
    for name in args.list:
        if (is_own_list or ours)(Path(name)) or (is_remote(name) and sent(name)):
            raise ConfigError(
                f"the list {show(name)} is what the run itself writes", hint="Copy it, and name the copy."
            )
    more = [one for name in args.list for one in listed(name, args.list_column)]
    found, documents = find_files(args.files, ours, more, sent), list[Document]()
    with progress_bars("files") as bar:
        for document in open_documents(found):
            documents.append(document)
            if bar:
                bar("Looking into files", len(documents), len(found))
    if not any(document.pages for document in documents):
        others = f" (and {len(documents) - 1} more)" if len(documents) > 1 else ""
        raise ConfigError(f"nothing can be read: {documents[0].error}{others}", hint="Name documents or pictures.")
    return documents


def lists_of(args: argparse.Namespace) -> list[Path]:
    """The files with names of documents, which nothing is written over."""
    return [Path(name) for name in args.list if name != STANDARD_INPUT and not is_remote(name)]


@dataclass(frozen=True)
class DocumentJob:
    """A walk through the pages of documents, of which a journal keeps what is done.

    Attributes:
        journal: its path.
        settings: beside the weights and the task, what decides the answers.
    """

    args: argparse.Namespace
    documents: Sequence[Document]
    task: PageTask
    journal: Path
    settings: Mapping[str, Any]

    @property
    def pages(self) -> int:
        return sum(len(document.pages) for document in self.documents)

    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        args = self.args
        options = {name: value for name, value in self.task.options.items() if name != "structured_outputs"}
        return {
            "weights": directory_of(args).fingerprint,
            **{name: getattr(args, name) for name in PLACES},
            "question": self.task.question,
            "options": options,
            **self.settings,
        }

    def dry_run(self) -> None:
        """Print what the run would cost; nothing is written."""
        done = Done()
        for key in keys_done(self.journal, self.identity()):
            done.add(key, {}, keep=False)
        with loaded(self.args, apart=True) as vlm:
            vlm.progress = None
            found = estimate(vlm, self.documents, done, self.task, concurrency=self.args.concurrency)
        failed = [document for document in self.documents if document.error]
        report_failures([{"file": document.name, "error": document.error} for document in failed], len(failed))
        counts = {"documents": len(self.documents), "failed": len(failed), **asdict(found)}
        if self.args.json:
            put_json({"dry_run": True, **counts})
        else:
            put(
                f"{counts['documents']} documents ({len(failed)} cannot be read), {found.pages} pages to answer: about "
                f"{found.prompt_tokens} prompt and {found.output_tokens} output tokens, {found.seconds} s with the "
                f"model loaded (measured on {found.measured} of them; {found.unanswered} more could not be answered)"
            )

    def run(self, done: Done, on_document: Callable[[Document, list[Value]], None]) -> None:
        """Answer what is not done, and hand each document on when it and those before it are complete.

        Raises:
            KeyboardInterrupt: with how many pages are kept.
        """
        keys = {key for document in self.documents for key in keys_of(document)}
        missing = [key for key in keys if key not in done]
        count = len(keys) - len(missing)
        try:
            with ExitStack() as stack:
                asking = None
                bar = stack.enter_context(progress_bars("pages"))
                if missing:
                    asking = stack.enter_context(_asking(self.args))

                def report() -> None:
                    nonlocal count
                    count += 1
                    if bar:
                        bar("Pages", count, len(keys))

                for document, values in answer_documents(asking, self.documents, done, self.task, report=report):
                    on_document(document, values)
        except KeyboardInterrupt:
            kept = f"{sum(map(done.keeps, keys))} of {len(keys)} pages are kept"
            kept += "; the same command goes on from there"
            raise KeyboardInterrupt(kept) from None


@contextmanager
def _asking(args: argparse.Namespace) -> Iterator[Asking]:
    if args.ray is None:
        with loaded(args, apart=True) as vlm:
            vlm.progress = None  # one bar is enough
            yield partial(ask_here, vlm, args.concurrency)
        return
    from pocketvlm.distributed.paging import ask_on

    with fleet_of(args) as fleet:
        yield partial(ask_on, fleet)


def status_of(summary: dict[str, Any] | None, show: Callable[[dict[str, Any]], None]) -> int:
    """The exit status of a run, whose summary is shown; of a dry run there is none."""
    if summary is None:
        return 0
    with suppress(ReaderLeftError):  # whose leaving says nothing about the documents
        show(summary)
    return int(summary["failed"] > 0)


def named(row: Mapping[str, Any]) -> str:
    """The error of a row, with the file and the page that it is about."""
    page = f", page {row['page']}" if row.get("page") else ""
    reason = str(row["error"])
    return reason if reason.startswith(str(row["file"])) else f"{row['file']}{page}: {reason}"


def report_failures(rows: Iterable[Mapping[str, Any]], count: int) -> None:
    """Say what failed, on stderr; of `count` rows, which may be many, the first."""
    for row in islice(rows, 20):
        say(harmless(named(row)))
    if count > 20:
        say(f"… and {count - 20} more")
