"""Files elsewhere (s3://, gs://, az://, …), through fsspec and its package for each kind of storage.

They are worked on as copies on this machine: what is read is fetched first, what is written is sent when it is whole.
Only callers whose names come from the user himself may open such addresses: they carry the rights of this process.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pocketvlm.errors import ConfigError, OutputError, need
from pocketvlm.files import is_partial

MAX_BYTES = 2**30  # of a document
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# These have a meaning of their own everywhere in this package.
_OURS = frozenset({"http", "https", "file", "data"})
# Storages without folders: the first part of a path there is made by people, not by the way.
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "obs", "r2", "tos"})


def is_remote(text: str) -> bool:
    """Whether a name is an address of a storage, such as s3://bucket/name."""
    found = _SCHEME.match(text)
    return found is not None and found[1].lower() not in _OURS


def storage(url: str) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path there.

    Raises:
        MissingExtraError: fsspec is not installed.
        ConfigError: there is no such kind of storage, or its package is missing, or it cannot be reached.
    """
    need("fsspec", "fsspec", "remote")
    import fsspec

    try:
        with reaching(url):
            filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{_short(url)}: {error}", hint="Install the package for this kind of storage.") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{_short(url)}: {error}", hint="Check the address.") from None
    return filesystem, str(path)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """What goes wrong within this block is that `url` cannot be reached: `ConfigError`."""
    try:
        yield
    except (ConfigError, ImportError, ValueError):
        raise
    except Exception as error:  # each kind of storage has its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{_short(url)} cannot be reached: {reason:.200}", hint="Check the address.") from None


def find_remote(url: str) -> list[tuple[str, str]]:
    """(address, path below the folder that was named) of each file that is meant: one file, those of a folder and below
    it but hidden ones, or those that a pattern fits; sorted.

    Raises:
        ConfigError: there is none, or the storage cannot be reached.
    """
    filesystem, path = storage(url)
    with reaching(url):
        if filesystem.isfile(path):  # also one whose name has the marks of a pattern
            found = {path: PurePosixPath(path).name}
        elif any(mark in path for mark in "*?["):
            found = {name: PurePosixPath(name).name for name in filesystem.glob(path) if filesystem.isfile(name)}
        elif filesystem.isdir(path):
            base = path.rstrip("/") + "/"
            found = {name: name.removeprefix(base) for name in filesystem.find(path)}
            found = {name: place for name, place in found.items() if not _is_left_out(place)}
        else:
            found = {}
    if not found:
        raise ConfigError(f"there is no file at {_short(url)}", hint="Name files, folders or patterns.")
    before = _before(url, path)
    return [(before + name, _safe(below)) for name, below in sorted(found.items())]


def _is_left_out(place: str) -> bool:
    """Hidden, or no file: a name that ends in / stands for a folder in storages that have none."""
    is_hidden = any(part[:1] == "." and part not in (".", "..") for part in place.split("/"))
    return is_hidden or not place or place.endswith("/")


def _safe(place: str) -> str:
    """A relative path that stays below where it begins, whatever the names in a storage are: they are any text."""
    return "/".join("_" if part in (".", "..") else part for part in place.split("/") if part)


def _before(url: str, path: str) -> str:
    """What of an address stands before the path that its storage knows: the kind, and often a host."""
    bare, bare_path = url.rstrip("/"), path.rstrip("/")
    if bare_path and bare.endswith(bare_path):
        return bare.removesuffix(bare_path)
    return f"{url.partition('://')[0]}://"


def _has_buckets(url: str) -> bool:
    return url.partition("://")[0].lower() in _BUCKETS


def check_target(url: str) -> None:
    """Say now, and not when all is done, that nothing can be written at this address.

    Raises:
        ConfigError: it cannot be reached, or its bucket does not exist.
    """
    filesystem, path = storage(url)
    bucket = path.partition("/")[0]
    with reaching(url):
        if _has_buckets(url) and not filesystem.exists(bucket):
            raise ConfigError(f"{_short(url)}: there is no bucket {bucket!r:.80}", hint="Check the address.")


def exists(url: str) -> bool:
    """Whether there is a file or a folder at this address."""
    filesystem, path = storage(url)
    with reaching(url):
        return bool(filesystem.exists(path))


class RemoteFile(str):
    """The address of a file elsewhere, as a source of pictures: whatever characters it holds.

    Attributes:
        pages: those wanted, as behind the # of a name; None: as it comes.
    """

    pages: str | None

    def __new__(cls, url: str, pages: str | None = None) -> Self:
        self = super().__new__(cls, url)
        self.pages = pages
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None]]:
        return type(self), (str(self), self.pages)


_RESUMING = (".journal", ".partial", ".fetched")  # the ends of names
_KEPT = 4  # files whose content is kept: the pages of a document follow each other
_recent: OrderedDict[str, Future[bytes]] = OrderedDict()
_changing = threading.Lock()


def read_remote(url: str) -> bytes:
    """The content of the file at `url`. That of the last few is kept until `forget_contents`, and threads that want the
    same one wait for one download.

    Raises:
        ConfigError: it is not there, cannot be reached, or is larger than `MAX_BYTES`.
    """
    with _changing:
        wanted = _recent.get(url)
        if is_mine := wanted is None:
            wanted = _recent[url] = Future()
            while len(_recent) > _KEPT:
                _recent.popitem(last=False)
        else:
            _recent.move_to_end(url)
    assert wanted is not None
    if is_mine:
        try:
            wanted.set_result(_download(url))
        except BaseException as error:
            with _changing:
                if _recent.get(url) is wanted:  # the next one tries again
                    del _recent[url]
            wanted.set_exception(error)
    return wanted.result()


def forget_contents() -> None:
    """Let what is read next be what stands there then."""
    with _changing:
        _recent.clear()


def _download(url: str) -> bytes:
    filesystem, path = storage(url)
    with reaching(url):
        if not filesystem.isfile(path):
            raise ConfigError(f"there is no file at {_short(url)}", hint="Check the address.")
        size = filesystem.size(path) or 0
        if size > MAX_BYTES:
            raise ConfigError(f"{_short(url)} has {size} bytes, at most {MAX_BYTES} are read", hint="Split it.")
        return bytes(filesystem.cat_file(path))


def fetch_file(url: str, target: Path) -> None:
    """Make `target` a copy of the file at `url`.

    Raises:
        ConfigError: it is not there, or cannot be reached.
    """
    filesystem, path = storage(url)
    with reaching(url):
        if not filesystem.isfile(path):
            raise ConfigError(f"there is no file at {_short(url)}", hint="Check the address.")
        filesystem.get_file(path, str(target))


def resumes(path: Path) -> bool:
    """Whether a file beside or in an output is there to resume its run, and is no part of it."""
    return path.name.endswith(_RESUMING) or is_partial(path)


def send(local: Path, url: str) -> None:
    """Put a file, or all files below a folder, at `url`; what is there is replaced.

    Raises:
        OutputError: that was not possible.
    """
    filesystem, path = storage(url)
    below = (one for one in local.rglob("*") if one.is_file() and not resumes(one))
    files = [local] if local.is_file() else sorted(below)
    try:
        with reaching(url):
            for file in files:
                target = path if file == local else f"{path.rstrip('/')}/{file.relative_to(local).as_posix()}"
                if not _has_buckets(url):  # where a folder that is made may be a bucket
                    filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(file), target)
    except ConfigError as error:
        raise OutputError(f"{local} could not be sent: {error}", hint="The same command goes on from there.") from None


def stand_in(url: str, base: Path) -> Path:
    """Where a run that writes to `url` keeps its files until they are sent: a folder of its own below `base`, which a
    run that goes on finds again."""
    folder = base / hashlib.sha256(url.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def forget(sent: Path) -> None:
    """Remove a file that was sent, or all of a folder but what resumes a run."""
    if not sent.is_dir():
        sent.unlink(missing_ok=True)
        return
    for one in sorted(sent.rglob("*"), reverse=True):
        if one.is_file() and (is_partial(one) or not resumes(one)):
            one.unlink(missing_ok=True)
    for one in sorted((one for one in sent.rglob("*") if one.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            one.rmdir()


def remove(url: str) -> None:
    """Remove the file at this address, if there is one.

    Raises:
        OutputError: that was not possible.
    """
    filesystem, path = storage(url)
    try:
        with reaching(url):
            if filesystem.isfile(path):
                filesystem.rm_file(path)
    except ConfigError as error:
        raise OutputError(f"{_short(url)} could not be removed: {error}") from None


def _short(url: str) -> str:
    return url if len(url) <= 120 else f"{url[:117]}..."
