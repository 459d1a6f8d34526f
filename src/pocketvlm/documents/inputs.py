"""What a user named (files, folders, globs) → documents: their pages, the hash of their content, or what is wrong."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """

    name: str
    path: Path
    pages: tuple[int, ...] = ()
    digest: str = ""
    error: str | None = None


def find_files(words: Sequence[str]) -> list[str]:
    """The files that are meant, each once: of a folder all below it but hidden ones, in sorted order.

    Raises:
        ConfigError: a word names nothing, or a folder without files.
    """
    found: dict[str, None] = {}
    for word in words:
        bare, _ = split_pages(word)
        path = Path(str(bare))
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and not _is_hidden(one, path))
            if not inside:
                raise ConfigError(f"the folder {word} holds no file to read", hint="Name one that does.")
            found |= dict.fromkeys(map(str, inside))
        elif path.exists():
            found[word] = None
        elif matches := sorted(one for one in glob.glob(word, recursive=True) if Path(one).is_file()):  # noqa: PTH207
            found |= dict.fromkeys(matches)
        else:
            raise ConfigError(f"there is no file {word!r}", hint="Name files, folders or patterns such as '*.pdf'.")
    if not found:
        raise ConfigError("no file was given", hint="Name files, folders or patterns such as '*.pdf'.")
    return list(found)


def open_documents(names: Sequence[str]) -> Iterator[Document]:
    """Look into each file; what is wrong with one is its `error`, and the others go on."""
    for name in names:
        bare, _ = split_pages(name)
        path = Path(str(bare))
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with open_pages(name, _MANY, True, Resolution()) as pages:
                for index in pages.indices[:1]:
                    pages.reader.size(index)  # some readers look into the file only now
                found = Document(name, path, tuple(index + 1 for index in pages.indices), digest)
        except (MediaError, OSError) as error:
            found = Document(name, path, error=str(error))
        yield found


def page_source(document: Document, page: int) -> str:
    """What names one page of a document to the model: pictures have no choice of pages."""
    if document.pages == (1,) and split_pages(document.name)[1] is None:
        return str(document.path)
    return f"{document.path}#{page}"


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
