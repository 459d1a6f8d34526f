"""Files that we write: complete or not at all, or line by line so that a later run goes on; nothing else is harmed.

A name that stands for something else than an ordinary file (a directory, symbolic link, device, pipe or socket) is
refused, and what is written meanwhile has a name that nobody else's file has.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pocketvlm.errors import ConfigError, OutputError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_MAX_HEADER = 2**20  # bytes; a longer first line is none of ours
_LOCKED_BYTE = 2**40  # on Windows locked bytes cannot be read, so the one that is locked lies behind all content

_PARTIAL = re.compile(r"\.[0-9a-f]{12}\.partial")  # how the name of a file ends that is being written

Differs = Callable[[str, Any, Any], ConfigError]


FileId = tuple[int, int]  # of the device, and of the file on it


def file_ids(paths: Iterable[Path]) -> frozenset[FileId]:
    """What tells files apart, whatever they are called; those that do not exist are left out."""
    found = set()
    for path in paths:
        with suppress(OSError, ValueError):
            status = path.stat()
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def check_output(path: Path, *, inputs: Iterable[Path] = (), read: Set[FileId] = frozenset()) -> bool:
    """Refuse what no file may be written over; returns whether there is an ordinary file already.

    Args:
        inputs: files that are read; those that do not exist are left out.
        read: the same as `file_ids`, of many files for which several outputs are checked.

    Raises:
        ConfigError: `path` names something else than an ordinary file, or one of `inputs`, or its directory is missing.
    """
    try:
        found = _lstat(path)
        if found is None:
            if not path.parent.is_dir():
                raise ConfigError(f"{path} cannot be written: {path.parent} is no directory", hint="Check the path.")
            return False
        if not stat.S_ISREG(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "no file")
            raise ConfigError(f"{path} cannot be written: it is {kind}", hint="Name an ordinary file, or a new one.")
        own = (found.st_dev, found.st_ino)
        if own in read or own in file_ids(inputs):
            raise ConfigError(f"{path} is both input and output", hint="Give the output another name.")
    except (OSError, ValueError) as error:  # a name that is too long, or with a zero byte
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(path)!r:.80} is no path to a file: {_reason(error)}") from None
    return True


def is_partial(path: Path) -> bool:
    """Whether a file has a name of those that `whole_file` writes: a process that was killed leaves it."""
    return _PARTIAL.fullmatch(path.name[-21:]) is not None


@contextmanager
def whole_file(path: Path, *, inputs: Iterable[Path] = ()) -> Iterator[IO[bytes]]:
    """A file to write, which has its name when it is complete and on the disk; nothing is left where that failed.

    An ordinary file of that name is replaced, and its permissions are kept.

    Args:
        inputs: files that must not be replaced.

    Raises:
        ConfigError: as `check_output`, or no file can be made there.
        OutputError: it could not be written to its end.
    """
    check_output(path, inputs=inputs)
    # Short, whatever the name is: a name may be 255 bytes long, and so be no longer with an ending of ours.
    partial = path.with_name(f"{path.name[:32]}.{secrets.token_hex(6)}.partial")
    try:
        file = partial.open("xb")  # "x" never opens what is there
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {_reason(error)}", hint="Check its directory.") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check_output(path, inputs=inputs):
            shutil.copymode(path, partial)
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


class Journal:
    """Lines that survive the end of this process, behind a header of what they have in common. See `open_journal`.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        self._begin = self._end = 0  # of the lines: bytes from the start of the file

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(number from 1, offset, line) of each whole line behind the header; a last one that was cut off is dropped.

        To be read to the end before the first `append`.
        """
        with self.path.open("rb") as file:
            file.seek(self._begin)
            self._end, number = self._begin, 1
            while (line := file.readline()).endswith(b"\n"):
                number += 1
                yield number, self._end, line
                self._end += len(line)
        self._file.truncate(self._end)

    def append(self, value: Mapping[str, Any]) -> int:
        """Write a value as one line; returns its offset. It survives the end of this process when this returns.

        Raises:
            OutputError: it could not be written, and nothing of it is left.
        """
        offset = self._end
        self._write(json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n")
        return offset

    def begin(self, header: bytes, kind: str, differs: Differs) -> None:
        """Check the header that is there, or write it where there is none yet, or half of one."""
        with self.path.open("rb") as file:
            first = file.readline(max(_MAX_HEADER, len(header)))
        if first.endswith(b"\n"):
            _check_header(self.path, first, header, kind, differs)
            self._begin = self._end = len(first)
        elif header.startswith(first):
            self._file.truncate(0)
            self._write(header)
            self._begin = self._end
        else:
            raise _not_ours(self.path)

    def holds_lines(self) -> bool:
        """Whether anything stands behind the header."""
        return os.fstat(self._file.fileno()).st_size > self._begin

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise cannot_write(self.path, error, hint="The same command goes on from there.") from None
        self._end += len(line)


@contextmanager
def open_journal(path: Path, kind: str, settings: Mapping[str, Any], differs: Differs) -> Iterator[Journal]:
    """Open a journal, new or to be continued, for this process alone. It goes where nothing came of it.

    Args:
        kind: what its header calls the format.
        settings: what all its lines have in common; JSON values.
        differs: makes the error for a setting of which there is another value: (name, there, wanted).

    Raises:
        ConfigError: the file cannot be written, is none of ours, has other settings, or is being written by another
            run; it is left as it was.
        OutputError: there is no room for it.
    """
    existed = check_output(path)
    header = json.dumps({"format": kind, "settings": settings}, ensure_ascii=False, sort_keys=True)
    try:
        file = path.open("a+b", buffering=0)  # every line goes to the system at once
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {_reason(error)}", hint="Give another file.") from None
    with file:
        # A run that ends now takes its file away: what was opened then has no name, and nobody would find it.
        if not lock(file) or not _is_still(path, file):
            raise ConfigError(f"{path} is being written by another run", hint="Wait for it, or give another file.")
        was_empty = existed and os.fstat(file.fileno()).st_size == 0
        journal = Journal(path, file)
        try:
            journal.begin(header.encode(errors="replace") + b"\n", kind, differs)
            yield journal
        finally:
            if not journal.holds_lines():
                with suppress(OSError):  # Windows removes no file that is open
                    file.truncate(0)
                    if not was_empty:
                        path.unlink(missing_ok=True)


def lock(file: IO[bytes]) -> bool:
    """Keep other processes of ours from writing to `file` until it is closed; whether no other one does already.

    Where the system or the file system has no locks, nothing is known of others: that counts as none.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True
    try:
        import msvcrt
    except ImportError:
        return True
    windows: Any = msvcrt  # its functions are known to type checkers on Windows only
    try:
        file.seek(_LOCKED_BYTE)
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def sync_directory(directory: Path) -> None:
    """A new name is on the disk only when its directory is. Windows knows no such thing."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):  # some file systems have no need of it, and no way to ask for it
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def cannot_write(path: Path, error: OSError, *, hint: str = "") -> OutputError:
    """The error for a file that could not be written to its end."""
    return OutputError(f"{path} cannot be written: {_reason(error)}", hint=hint)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _is_still(path: Path, file: IO[bytes]) -> bool:
    """Whether `path` is the name of this open file."""
    found = _lstat(path)
    return found is not None and os.path.samestat(found, os.fstat(file.fileno()))


def _check_header(path: Path, first: bytes, header: bytes, kind: str, differs: Differs) -> None:
    """Refuse a file that is none of ours, or of another run."""
    try:
        read = json.loads(first)
        found = read["settings"]
        ours = read["format"] == kind and isinstance(found, dict)
    except (ValueError, TypeError, LookupError, RecursionError):
        ours = False
    if not ours:
        raise _not_ours(path)
    wanted = json.loads(header)["settings"]
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise differs(name, found.get(name), wanted.get(name))


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _not_ours(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a file of results", hint="Move it away, or give another name.")
