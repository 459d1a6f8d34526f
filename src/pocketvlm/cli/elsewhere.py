"""Outputs and inputs of a command that are elsewhere (s3://…): worked on as copies here, and sent when all is done."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketvlm.batch.tables import is_table, lines_of_table
from pocketvlm.errors import ConfigError
from pocketvlm.machine import cache_directory
from pocketvlm.remote_files import exists, fetch_file, forget, is_remote, send, stand_in


@contextmanager
def output_sent(args: argparse.Namespace, name: str = "out") -> Iterator[None]:
    """Within this block the output that `args` names is a path of this machine. What stands there or beside it when the
    block ends well is sent to where it belongs; what resumes a run stays here until then.

    Raises:
        ConfigError: the output is there already, and --overwrite was not given; or it cannot be reached.
        OutputError: it could not be sent; the files are kept.
    """
    text: str = getattr(args, name)
    args.shown_out = text
    if not is_remote(text):
        setattr(args, name, Path(text))
        yield
        return
    if exists(text) and not args.overwrite:
        raise ConfigError(f"{text:.200} is already there", hint="Pass --overwrite, or give another name.")
    url = text.rstrip("/")
    folder = stand_in(url, cache_directory() / "elsewhere")
    setattr(args, name, folder / url.rpartition("/")[2])
    args.overwrite = True  # of what an earlier run left here and could not send
    yield
    for made in sorted(folder.iterdir()):
        if not made.name.endswith((".journal", ".partial", ".fetched")):
            send(made, f"{url.rpartition('/')[0]}/{made.name}")
    forget(folder)


def requests_here(text: str) -> Path:
    """A file of requests of this machine, one a line, in which stands what the file or table `text` has, wherever that
    is: the file itself where it is one.

    Raises:
        ConfigError: it is not there, cannot be reached, or is no table of requests.
    """
    path = Path(text)
    if not (is_remote(text) or is_table(path)):
        return path
    folder = stand_in(f"requests {text if is_remote(text) else path.absolute()}", cache_directory() / "elsewhere")
    copy, lines = folder / f"{path.name[:64]}.fetched", folder / f"{path.name[:64]}.jsonl"
    if is_remote(text):
        fetch_file(text, copy)
        path = copy
    elif not path.is_file():
        raise ConfigError(f"{text!r:.200} is no file", hint="Check the path.")
    if is_table(Path(text)):
        lines_of_table(path, lines, text)
        return lines
    return path


def folder_of(text: str) -> str:
    """Where relative paths begin in a file of requests: an address, or a path."""
    return text.rpartition("/")[0] if is_remote(text) else str(Path(text).parent)
