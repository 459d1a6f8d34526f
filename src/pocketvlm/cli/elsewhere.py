"""Outputs and inputs of a command that are elsewhere (s3://…): worked on as copies here, and sent when all is done."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pocketvlm.batch.tables import is_table, lines_of_table
from pocketvlm.errors import ConfigError
from pocketvlm.machine import cache_directory
from pocketvlm.remote_files import check_target, exists, fetch_file, forget, is_remote, remove, resumes, send, stand_in


@contextmanager
def output_sent(
    args: argparse.Namespace, name: str = "out", *, others: Sequence[str] = (), besides: Sequence[str] = ()
) -> Iterator[None]:
    """Within this block the output that `args` names is a path of this machine. What stands there or beside it when the
    block ends well is sent to where it belongs, and what an earlier run had beside it and this one has not is removed
    there. What resumes a run stays here. A dry run sends nothing.

    Args:
        others: addresses that are written as well, where the output is elsewhere.
        besides: what the names of files that a run may have beside or in its output end with, behind its name.

    Raises:
        ConfigError: one of them is there already, and --overwrite was not given; or it cannot be reached.
        OutputError: it could not be sent; the files are kept.
    """
    text: str = getattr(args, name)
    args.shown_out = text
    if not is_remote(text):
        setattr(args, name, Path(text))
        yield
        return
    url, is_dry = text.rstrip("/"), getattr(args, "dry_run", False)
    folder = stand_in(url, cache_directory() / "elsewhere")
    out = folder / url.rpartition("/")[2]
    # What is here was not sent: that run goes on.
    if not (is_dry or args.overwrite or _is_unsent(out)):
        for there in filter(exists, (text, *others)):
            raise ConfigError(f"{there:.200} is already there", hint="Pass --overwrite, or give another name.")
    check_target(text)
    setattr(args, name, out)
    args.overwrite = True  # of what an earlier run left here and could not send
    yield
    if is_dry:
        return
    made = [one for one in sorted(folder.iterdir()) if not resumes(one)]
    for one in made:
        send(one, f"{url.rpartition('/')[0]}/{one.name}")
    for beside in besides:
        if not Path(f"{out}{beside}").exists():
            remove(f"{url}{beside}")
    for one in made:
        forget(one)


def _is_unsent(out: Path) -> bool:
    """Whether an output stands here, beside what resumes a run."""
    return out.is_file() or any(one.is_file() and not resumes(one) for one in out.rglob("*"))


@contextmanager
def requests_here(text: str) -> Iterator[Path]:
    """A file of requests of this machine, one a line, in which stands what the file or table `text` has, wherever that
    is: the file itself where it is one, else a copy of this process, which goes when this block ends.

    Raises:
        ConfigError: it is not there, cannot be reached, or is no table of requests.
    """
    path = Path(text)
    if not (is_remote(text) or is_table(path)):
        yield path
        return
    base = cache_directory() / "elsewhere"
    base.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="requests-", dir=base, ignore_cleanup_errors=True) as folder:
        copy, lines = (Path(folder, f"{path.name[:64]}.{ending}") for ending in ("fetched", "jsonl"))
        if is_remote(text):
            fetch_file(text, copy)
            path = copy
        elif not path.is_file():
            raise ConfigError(f"{text!r:.200} is no file", hint="Check the path.")
        if is_table(Path(text)):
            lines_of_table(path, lines, text)
            path = lines
        yield path


def folder_of(text: str) -> str:
    """Where relative paths begin in a file of requests: an address, or a path."""
    return text.rpartition("/")[0] if is_remote(text) else str(Path(text).parent)
