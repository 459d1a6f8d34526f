"""What a user named (files, folders, globs) → documents: their pages, the hash of their content, or what is wrong."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.page_reader import open_pages
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.pdf import Resolution

_MANY = MediaLimits(max_images=1_000_000)  # pages are asked for one by one, so that a document may have many


@dataclass(frozen=True, slots=True)
class Document:
    """One file.

    Attributes:
        name: as the user wrote it, or as it was found.
        path: of the file, without a choice of pages.
        pages: those wanted, counted from 1; none where `error` says why.
        digest: SHA-256 of its content, in hex; "" where it could not be read.
        place: below the folder that was named, or its name alone.
        choice: what stands behind the # of its name.
    """

    name: str
    path: Path
    pages: tuple[int, ...] = ()
    digest: str = ""
    error: str | None = None
    place: Path = Path()
    choice: str | None = None


class Found(NamedTuple):
    """A file that is meant.

    Attributes:
        name: as the user wrote it, or as it was found.
        place: below the folder that was named, or its name alone.
    """

    name: str
    place: Path


def find_files(words: Sequence[str]) -> list[Found]:
    """The files that are meant, each once: of a folder all below it but hidden ones, in sorted order.

    Raises:
        ConfigError: a word names nothing, or a folder without files.
    """
    found: dict[str, Path] = {}
    for word in words:
        bare, _ = split_pages(word)
        path = Path(str(bare))
        try:
            if path.is_dir():
                inside = sorted(one for one in path.rglob("*") if one.is_file() and not _is_hidden(one, path))
                if not inside:
                    raise ConfigError(f"the folder {word} holds no file to read", hint="Name one that does.")
                found |= {str(one): one.relative_to(path) for one in inside}
            elif path.exists():
                found[word] = Path(path.name)
            elif matches := sorted(one for one in glob.glob(word, recursive=True) if Path(one).is_file()):  # noqa: PTH207
                found |= {one: Path(Path(one).name) for one in matches}
            else:
                raise ConfigError(f"there is no file {word!r:.200}", hint="Name files, folders or patterns.")
        except (OSError, ValueError) as error:  # too long, or with a zero byte
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{word!r:.80} is no path to a file", hint="Name files, folders or patterns.") from None
    if not found:
        raise ConfigError("no file was given", hint="Name files, folders or patterns such as '*.pdf'.")
    return [Found(name, place) for name, place in found.items()]


def open_documents(files: Iterable[Found], resolution: Resolution | None = None) -> Iterator[Document]:
    """Look into each file; what is wrong with one is its `error`, and the others go on."""
    for name, place in files:
        bare, choice = split_pages(name)
        path = Path(str(bare))
        about: dict[str, Any] = {"name": name, "path": path, "place": place, "choice": choice}
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with open_pages(name, _MANY, True, resolution or Resolution()) as pages:
                for index in pages.indices[:1]:
                    pages.reader.size(index)  # some readers look into the file only now
                numbers = tuple(dict.fromkeys(index + 1 for index in pages.indices))
            yield Document(**about, pages=numbers, digest=digest)
        except (MediaError, OSError) as error:
            reason = f"{name} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            yield Document(**about, error=reason)


def page_source(document: Document, page: int) -> str:
    """What names one page of a document to the model: pictures have no choice of pages."""
    if document.pages == (1,) and document.choice is None:
        return str(document.path)
    return f"{document.path}#{page}"


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
