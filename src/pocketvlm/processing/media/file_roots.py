"""file: URL → an open file, within folders that were named for it and nowhere else.

Whoever writes a request must not learn what else is on the machine. So the path is resolved first, through every link,
and only what then lies inside a folder is opened, one component after the other and without following links: nothing
that is exchanged meanwhile leads out. Outside there is one answer, whatever is there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits

# Without O_NONBLOCK opening a pipe waits for its writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def is_file_url(source: str) -> bool:
    """True for file:, in any case."""
    return source[:5].lower() == "file:"


def open_file_url(url: str, limits: MediaLimits) -> IO[bytes]:
    """The file of a file: URL.

    Raises:
        MediaError: the URL is malformed or leads out of `limits.file_roots`; there is no such file; it is empty, or
            has more than `limits.max_bytes`.
    """
    return open_inside(_path_of(url), limits, "The file: URL", hint="Give a data: or http(s) URL.")


def open_inside(path: Path, limits: MediaLimits, name: str, *, hint: str, if_missing: str = "Check it.") -> IO[bytes]:
    """The file of a path within `limits.file_roots`; errors as above.

    Args:
        name: what messages call the path.
        hint: what to do about one that leads out.
        if_missing: what to do where there is no such file.
    """
    root, inner = _inside(path, limits.file_roots, name, hint)
    try:
        descriptor = _open(root, inner)
    except FileNotFoundError:
        raise MediaError(f"{name} names no file", hint=if_missing) from None
    except (OSError, ValueError):
        raise MediaError(f"{name} names a file that may not be read", hint="Check its permissions.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name} names a folder, a device or a pipe, expected a file")
        if status.st_size == 0:
            raise MediaError(f"{name} names an empty file", hint="Check how it was written.")
        limits.check_bytes(status.st_size, name)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _path_of(url: str) -> Path:
    try:
        parts = urlsplit(url)
        if parts.netloc.lower() not in ("", "localhost") or parts.query or parts.fragment or "\\" in url:
            raise ValueError
        path = url2pathname(parts.path)
        if "\0" in path or not Path(path).is_absolute():
            raise ValueError
    except (ValueError, OSError):
        raise MediaError("The file: URL is malformed", hint="Give file:///folder/name.png, percent-encoded.") from None
    return Path(path)


def _inside(path: Path, roots: Sequence[str], name: str, hint: str) -> tuple[Path, tuple[str, ...]]:
    """The folder that holds a path once every link is followed, and the way from there."""
    try:
        found = Path(os.path.realpath(path))
        for root in roots:
            base = Path(os.path.realpath(root))
            if found != base and found.is_relative_to(base):
                return base, found.relative_to(base).parts
    except (OSError, ValueError):
        pass
    raise MediaError(f"{name} leads to none of the folders that files are read from", hint=hint)


def _open(root: Path, inner: Sequence[str]) -> int:
    if os.open not in os.supports_dir_fd:
        return os.open(root.joinpath(*inner), _FLAGS)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in inner[:-1]:
            deeper = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        return os.open(inner[-1], _FLAGS, dir_fd=folder)
    finally:
        os.close(folder)
