"""Pages of which the model was not sure → an HTML file in which a person corrects them, by keyboard and offline.

What was checked is exported as lines that `pocketvlm tune` takes. The file holds the pictures, sends nothing and loads
nothing (its Content Security Policy names its own script by its hash).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from pocketvlm.documents.field_kinds import NewItem, array_items, field_kinds
from pocketvlm.documents.inputs import Document, page_source
from pocketvlm.documents.journal import Done, Value
from pocketvlm.documents.pages import keys_of
from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.processing.media.document_opener import DocumentOpener
from pocketvlm.processing.media.sources import NamedBytes
from pocketvlm.remote_files import RemoteFile, read_remote

logger = logging.getLogger(__name__)
MAX_PAGES = 300  # of a file: a hundred megabytes of pictures
_LONGEST_SIDE, _QUALITY = 1400, 80  # of a picture: to be read on a screen
_FOLDER = resources.files("pocketvlm.documents") / "review_page"

Doubtful = tuple[Document, int, Value]


def doubtful_pages(documents: Sequence[Document], done: Done, threshold: float) -> Iterator[Doubtful]:
    """Pages with a field whose confidence is below `threshold`, in the order of the documents, each content once."""
    seen = set()
    for document in documents:
        for key in keys_of(document):
            value = done.get(key)
            if key in seen or not value or value["data"] is None:
                continue
            sure = value["confidence"].values()  # none where the model's tokens could not be told apart
            if not sure or any(confidence < threshold for confidence in sure):
                seen.add(key)
                yield document, key[1], value


def review_page(
    pages: Sequence[Doubtful], question: str, threshold: float, schema: Mapping[str, Any]
) -> tuple[str, int]:
    """The HTML file, and how many pages it holds: without those that cannot be read any more.

    Args:
        pages: at most `MAX_PAGES` are sensible.
        question: what each page was asked, for the lines that are exported.
        threshold: fields below it are marked.
        schema: of the answers: what is null has the type that it would have.
    """
    style, script = (
        (_FOLDER / f"review.{ending}").read_text(encoding="utf-8").replace("\r\n", "\n") for ending in ("css", "js")
    )
    with DocumentOpener() as opener:
        shown = [made for page in pages if (made := _page(opener, *page, schema)) is not None]
    review = {"question": question, "threshold": threshold, "pages": shown}
    # A "<" of a document could end the element that holds it.
    data = json.dumps(review, ensure_ascii=False).replace("<", "\\u003c")
    parts = {"style": style, "script": script, "style_hash": _hash(style), "script_hash": _hash(script), "review": data}
    text = (_FOLDER / "review.html").read_text(encoding="utf-8")
    # In one pass: what a document says is no place for another part.
    pieces = [parts[piece] if number % 2 else piece for number, piece in enumerate(_split(text))]
    return "".join(pieces), len(shown)


def _split(text: str) -> list[str]:
    """Text and the names of its places, in turns."""
    pieces: list[str] = []
    for piece in text.split("{"):
        name, brace, rest = piece.partition("}")
        pieces += [name, rest] if brace and pieces else [piece]
    return pieces


def _page(
    opener: DocumentOpener, document: Document, page: int, value: Value, schema: Mapping[str, Any]
) -> dict[str, Any] | None:
    """None of a page that cannot be read any more."""
    source = page_source(document, page)
    try:
        content: str | bytes = source
        if isinstance(source, RemoteFile):
            content = NamedBytes(read_remote(str(source)), document.name, source.pages)
        picture = opener.picture(content, _LONGEST_SIDE, _QUALITY)
    except (ConfigError, MediaError, EngineError) as error:
        logger.warning("left out of the review: %s, page %d: %s", document.name, page, error)
        return None
    if isinstance(source, RemoteFile):
        where = str(source) if source.pages is None else f"{source}#{source.pages}"
    else:
        choice = source.removeprefix("./").removeprefix(str(document.path))
        where = f"{document.path.resolve()}{choice}"
    return {
        "file": document.name,
        "page": page,
        "data": value["data"],
        "confidence": value["confidence"],
        "digits": value.get("digits", {}),
        "kinds": {name: kind._asdict() for name, kind in field_kinds(value["data"], schema)},
        "arrays": _as_json(array_items(value["data"], schema)),
        "picture": f"data:image/jpeg;base64,{picture}",
        "source": where,
    }


def _as_json(arrays: Mapping[str, NewItem]) -> dict[str, Any]:
    return {
        name: {
            "item": new.item,
            "kinds": {field: kind._asdict() for field, kind in new.kinds.items()},
            "arrays": _as_json(new.arrays),
        }
        for name, new in arrays.items()
    }


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
