"""What a user named (files, folders, globs) → documents: their pages, the hash of their content, or what is wrong."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.document_opener import DocumentOpener
from pocketvlm.processing.media.fetch import is_url
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.sources import NamedBytes, is_path
from pocketvlm.ranges import show
from pocketvlm.remote_files import RemoteFile, exists, find_remote, forget_contents, is_remote, read_remote

FETCHED_AHEAD = 8  # documents elsewhere


@dataclass(frozen=True, slots=True)
class Document:
    """One file.

    Attributes:
        name: as the user wrote it, or as it was found.
        path: of the file, without a choice of pages.
        pages: those wanted, counted from 1; none where `error` says why.
        digest: SHA-256 of its content, in hex; "" where it could not be read.
        url: where it is instead of `path`, on a storage elsewhere.
        place: below the folder that was named, or its name alone.
        choice: what stands behind the # of its name.
        stamp: bytes and time of the last change of the file when its content was hashed; None of one elsewhere.
    """

    name: str
    path: Path
    pages: tuple[int, ...] = ()
    digest: str = ""
    error: str | None = None
    place: Path = Path()
    choice: str | None = None
    url: str | None = None
    stamp: tuple[int, int] | None = None

    @property
    def has_changed(self) -> bool:
        """Whether the file is another one by now than the one that was hashed, as far as its stamp tells."""
        try:
            return self.stamp is not None and _stamp(self.path) != self.stamp
        except OSError:
            return True


class Found(NamedTuple):
    """A file that is meant.

    Attributes:
        name: as the user wrote it, or as it was found.
        place: below the folder that was named, or its name alone.
        url: where it is, on a storage elsewhere.
        choice: pages that are wanted of that, as behind a #.
        error: why it cannot be read, where that is known already.
    """

    name: str
    place: Path
    url: str | None = None
    choice: str | None = None
    error: str | None = None


def find_files(
    words: Sequence[str],
    ours: Callable[[Path], bool] = lambda _path: False,
    listed: Sequence[Found] = (),
    sent: Callable[[str], bool] = lambda _url: False,
) -> list[Found]:
    """The files that are meant, each once: of a folder all below it but hidden ones and links to folders, in sorted
    order. A folder in it that is closed to us is there as one that cannot be read.

    Args:
        ours: tells files that the run itself writes, which are left out of folders and patterns.
        listed: more of them, behind those that `words` name.
        sent: tells addresses that the run writes to, in the same way.

    Raises:
        ConfigError: a word names nothing, no ordinary file, or a folder without files, or one that cannot be listed.
    """
    found: dict[str, Found] = {}
    for word in words:
        try:
            found |= _found(word, ours, sent)
        except (OSError, ValueError) as error:  # too long, with a zero byte, or closed to us
            if isinstance(error, ConfigError):
                raise
            reason = error.strerror if isinstance(error, OSError) else "it is no path"
            raise ConfigError(
                f"{word!r:.80} cannot be read: {reason}", hint="Name files, folders or patterns."
            ) from None
    together = [*found.values(), *listed]
    if not together:
        raise ConfigError("no file was given", hint="Name files, folders or patterns such as '*.pdf', or a --list.")
    once: dict[tuple[str, str | None], Found] = {}
    for file in together:
        once.setdefault(_identity(file), file)
    return [*once.values()]


def _identity(file: Found) -> tuple[str, str | None]:
    """What two names of the same pages of the same file have in common."""
    if file.url is not None:
        return file.url, file.choice
    bare, choice = split_pages(file.name)
    return os.path.abspath(str(bare)), choice  # noqa: PTH100


def _found(word: str, ours: Callable[[Path], bool], sent: Callable[[str], bool]) -> dict[str, Found]:
    """What one word means, by name."""
    if not word:  # which a path would take for the working directory
        raise ConfigError("the name of a file is empty", hint="Name files, folders or patterns.")
    if is_remote(word):
        if names := {file.name: file for file in _found_elsewhere(word, sent)}:
            return names
        raise ConfigError(f"{word:.200} holds no file to read", hint="Name one that does.")
    if reason := not_read(word):
        raise ConfigError(f"{word!r:.200} cannot be read: {reason}", hint="Download it, and name the file.")
    bare, _ = split_pages(word)
    path = Path(str(bare))
    if path.is_dir():
        if str(bare) != word:
            raise ConfigError(f"{word!r:.200} chooses pages of a folder", hint="Choose them behind the name of a file.")
        inside = sorted((one, why) for one, why in _below(path) if not ours(one))
        if not inside:
            raise ConfigError(f"the folder {word} holds no file to read", hint="Name one that does.")
        return {_as_path(one): Found(_as_path(one), one.relative_to(path), error=why) for one, why in inside}
    if path.is_file():
        name = word if is_path(str(bare)) else f"./{word}"
        return {name: Found(name, Path(path.name))}
    if path.exists():
        raise ConfigError(f"{word!r:.200} is no ordinary file", hint="Name files, folders or patterns.")
    matches = (Path(one) for one in sorted(glob.glob(word, recursive=True)))  # noqa: PTH207
    files = (Found(_as_path(one), Path(one.name)) for one in matches if one.is_file() and not ours(one))
    if names := {file.name: file for file in files}:
        return names
    raise ConfigError(f"there is no file {word!r:.200}", hint="Name files, folders or patterns.")


def not_read(name: str) -> str:
    """Why `read` and `extract` take no such name; "" where nothing speaks against it."""
    return "it is an address of the web" if is_url(name) else ""


def _found_elsewhere(word: str, sent: Callable[[str], bool]) -> Iterator[Found]:
    """What an address means: the file of that very name, or what stands before its last # with a choice of pages."""
    bare, hash_, choice = word.rpartition("#")
    if not hash_ or exists(word):
        bare, choice = word, ""
    for url, below in find_remote(bare):
        if url == bare or not sent(url):
            yield Found(f"{url}#{choice}", Path(below), url, choice) if choice else Found(url, Path(below), url)


def _below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Ordinary files in a folder and below it, with None; and, with the reason, what cannot be read: folders that are
    closed, and links that lead nowhere. `OSError` where the folder itself is closed."""
    closed: list[tuple[Path, str | None]] = []

    def note(error: OSError) -> None:
        path = Path(error.filename)
        if path == folder:
            raise error
        closed.append((path, f"{path} cannot be read: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    yield path, None
            except FileNotFoundError:
                if path.is_symlink():  # else it went meanwhile
                    yield path, f"{path} cannot be read: it is a link to what is not there"
            except OSError as error:
                yield path, f"{path} cannot be read: {error.strerror}"
    yield from closed


def _as_path(path: Path) -> str:
    """A name that nothing takes for an address, whatever the file is called."""
    return str(path) if is_path(str(path)) else f"./{path}"


def open_documents(files: Iterable[Found]) -> Iterator[Document]:
    """Look into each file, in their order; what is wrong with one is its `error`, and the others go on."""
    forget_contents()
    with DocumentOpener() as opener:
        for file, fetched in _fetched(files):
            yield _opened(opener, file, fetched)


def _opened(opener: DocumentOpener, file: Found, fetched: Future[bytes] | None) -> Document:
    name, place, url, choice, error = file
    bare, pages_of_file = (url, choice) if url is not None else split_pages(name)
    document = Document(name, Path(str(bare)), place=place, choice=pages_of_file, url=url, error=error)
    if error is not None:
        return document
    try:
        body = None if fetched is None else fetched.result()
        if body is None and not stat.S_ISREG(document.path.stat().st_mode):  # a pipe would be waited for
            raise MediaError(f"{name:.200} is no ordinary file", hint="Name documents or pictures.")
        stamp = None if body is not None else _stamp(document.path)
        digest = _digest(document.path) if body is None else hashlib.sha256(body).hexdigest()
        pages = opener.pages(name if body is None else NamedBytes(body, name, choice))
        return replace(document, pages=pages, digest=digest, stamp=stamp)
    except (ConfigError, MediaError, OSError) as fault:
        reason = f"{name} cannot be read: {fault.strerror}" if isinstance(fault, OSError) else str(fault)
        return replace(document, error=reason)
    except ValueError:  # a zero byte, or what cannot be written in the file system's encoding
        return replace(document, error=f"{show(name, 200)} cannot be read: it is no path")


def _fetched(files: Iterable[Found]) -> Iterator[tuple[Found, Future[bytes] | None]]:
    """Each file with its content where it is elsewhere. Several are fetched at a time, since most of
    that is waiting, and never more than `FETCHED_AHEAD` of them are kept."""
    ahead: deque[tuple[Found, Future[bytes] | None]] = deque()
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        try:
            for file in files:
                is_here = file.url is None or file.error is not None
                ahead.append((file, None if is_here else pool.submit(read_remote, str(file.url))))
                if len(ahead) >= FETCHED_AHEAD:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:  # also where the caller wants no more
            pool.shutdown(wait=False, cancel_futures=True)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def page_source(document: Document, page: int) -> str:
    """One page of a document, as the model takes a picture: by name, so that it is read where it is prepared."""
    # Pictures have no choice of pages.
    is_whole = document.pages == (1,) and document.choice is None
    if document.url is not None:
        return RemoteFile(document.url, None if is_whole else str(page))
    path = _as_path(document.path)
    if is_whole:
        return path
    # A file may be called as if it were a page of another one.
    ways = (f"{path}#{way}" for way in (page, f"page={page}", f"{page}-{page}", f"{page:04}"))
    return next(way for way in ways if not os.path.lexists(way))
