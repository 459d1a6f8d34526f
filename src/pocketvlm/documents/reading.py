"""Documents → their text: Markdown, plain text or HTML, a file each, with marks where pages begin."""

from __future__ import annotations

import html
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Value
from pocketvlm.documents.pages import PageTask
from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.processing.media.document_opener import DocumentOpener
from pocketvlm.remote_files import read_remote

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer

logger = logging.getLogger(__name__)
FORMATS = {"markdown": ".md", "text": ".txt", "html": ".html"}
INDEX, FAILED, JOURNAL = OWN_FILES = ("index.jsonl", "failed.jsonl", ".journal")
_LONGEST_NAME = 180  # bytes
MAX_TOKENS = 4096  # of a page, where nothing else is said
_LOST: dict[str, Any] = {"text": "", "tokens": 0, "seconds": 0.0, "finish_reason": None, "mean_logprob": None}
# As the published model writes where something is: the corners in thousandths of the picture.
_BOX = re.compile(r"&lt;box&gt;\s*(\d{1,4})[ ,]+(\d{1,4})[ ,]+(\d{1,4})[ ,]+(\d{1,4})\s*&lt;/box&gt;")
_REF = re.compile(r"&lt;ref&gt;(.*?)&lt;/ref&gt;")


def transcription(prompt: str, options: Mapping[str, Any]) -> PageTask:
    """The task of writing down what a page says.

    Args:
        options: of pictures and sampling.
    """
    return PageTask(prompt, _value_of, _LOST, {"temperature": 0, "max_tokens": MAX_TOKENS, **options, "logprobs": 0})


def _value_of(answer: Answer) -> Value:
    logs = [piece.logprob for piece in answer.logprobs or ()]
    return {
        "text": answer.text,
        "tokens": answer.usage.completion_tokens,
        "seconds": round(answer.timing.get("total", 0.0), 3),
        "finish_reason": answer.finish_reason,
        "mean_logprob": round(sum(logs) / len(logs), 4) if logs else None,
        "error": None,
    }


def check_format(form: str) -> str:
    """One of `FORMATS`, or `ConfigError`."""
    if form not in FORMATS:
        raise ConfigError(f"format={form!r:.40} is unknown, expected one of {', '.join(FORMATS)}")
    return form


# Of each page of a document the text that the file itself holds, or None; nothing of a document that has none.
TextLayers = Callable[[Document], Sequence[str | None]]
_PAGES_AT_ONCE = 100  # that one question for texts may take two minutes for


def page_rows(
    document: Document, values: Sequence[Value], form: str = "markdown", *, layers: TextLayers | None = None
) -> Iterator[dict[str, Any]]:
    """Of each page `file`, `page` (from 1), `text`, `tokens`, `seconds`, `finish_reason`, `mean_logprob`, `error`; one
    row without a page where the document could not be read.

    Args:
        layers: add `text_layer`, the text that a PDF itself holds; None of what is none.
    """
    none: dict[str, Any] = {} if layers is None else {"text_layer": None}
    if document.error:
        yield {"file": document.name, "page": None, **_LOST, **none, "error": document.error}
    texts = () if layers is None or document.error else layers(document)
    for number, (page, value) in enumerate(zip(document.pages, values, strict=True)):
        text = as_html(value["text"]) if form == "html" and not value["error"] else value["text"]
        layer = {"text_layer": texts[number]} if texts else none
        yield {"file": document.name, "page": page, **value, "text": text, **layer}


@contextmanager
def text_layers(wanted: bool) -> Iterator[TextLayers | None]:
    """What `page_rows` takes; None where none are `wanted`. What cannot be read is logged, and has none."""
    if not wanted:
        yield None
        return
    with DocumentOpener() as opener:

        def some(document: Document, source: str | bytes, pages: Sequence[int]) -> Sequence[str | None] | None:
            try:
                return opener.texts(source, pages)
            except (MediaError, EngineError) as error:
                logger.warning("%s, pages %d to %d have no text layer: %s", document.name, pages[0], pages[-1], error)
                return [None] * len(pages)

        def layers(document: Document) -> Sequence[str | None]:
            try:
                source = str(document.path) if document.url is None else read_remote(document.url)
            except (OSError, ConfigError, MediaError) as error:
                logger.warning("%s has no text layer: %s", document.name, error)
                return ()
            found: list[str | None] = []
            for first in range(0, len(document.pages), _PAGES_AT_ONCE):
                texts = some(document, source, document.pages[first : first + _PAGES_AT_ONCE])
                if texts is None:  # it is no PDF
                    return ()
                found += texts
            return found

        yield layers


def index_rows(
    document: Document, values: Sequence[Value], out: str | None, *, layers: TextLayers | None = None
) -> Iterator[dict[str, Any]]:
    """A line of the index for each page: as `page_rows`, with the file that was written in the place of the text."""
    for row in page_rows(document, values, layers=layers):
        fields = {"file": row.pop("file"), "page": row.pop("page"), "out": out}
        yield {**fields, **{name: value for name, value in row.items() if name != "text"}}


def written(document: Document, values: Sequence[Value], form: str) -> str:
    """The text of a document in one of `FORMATS`. Where it has several pages, each begins with a mark; a page that
    failed says so."""
    several = len(document.pages) > 1
    parts = []
    for page, value in zip(document.pages, values, strict=True):
        text = value["text"].strip("\n")
        missing = f"[page {page} could not be read: {value['error']}]" if value["error"] else ""
        if form == "html":
            body = f"<p>{html.escape(missing)}</p>\n" if missing else as_html(text)
            parts.append(f'<section data-page="{page}">\n{body}</section>\n')
        elif form == "markdown":
            parts.append((f"<!-- page {page} -->\n\n" if several else "") + f"{missing or text}\n")
        else:
            parts.append(f"{missing or text}\n\f")
    if form == "html":
        title = html.escape(Path(document.name).name)
        head = f'<!doctype html>\n<html>\n<head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n'
        return f"{head}{''.join(parts)}</body>\n</html>\n"
    # A form feed ends each page of plain text, as `pdftotext` has it.
    return ("" if form == "text" else "\n").join(parts)


def as_html(markdown: str) -> str:
    """Markdown of a model as HTML that can do nothing: its own tags are text. A box in the published model's form
    becomes an element with `data-box`, in thousandths of the page."""
    from markdown_it import MarkdownIt

    # Pictures would be fetched from where the document says as soon as the page is opened.
    made: str = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(markdown)
    made = _BOX.sub(r'<span class="box" data-box="\1 \2 \3 \4"></span>', made)
    return _REF.sub(r'<span class="ref">\1</span>', made)


def output_names(documents: Sequence[Document], form: str) -> list[Path]:
    """A file name for each document, relative to the folder that is written, no two of them alike, and none that of a
    folder or of our own files.

    It is the name of the file with another ending, in the folders that it had below the one that was named. Several
    choices of pages of one file have these in their names. Where two would be alike, the first ending stays, and then a
    number is added.
    """
    ending, names = FORMATS[form], list[Path]()
    places = [_own_place(document.place) for document in documents]
    choices = Counter(places)
    taken = {str(parent).lower() for place in places for parent in place.parents}
    for document, place in zip(documents, places, strict=True):
        pages = re.sub(r"[^0-9,-]", "", document.choice or "")[:40] if choices[place] > 1 else ""
        stem = _short(f"{_short(place.stem)}-{pages}" if pages else place.stem)
        numbered = (f"{stem}-{number}{ending}" for number in itertools.count(2))
        tries = itertools.chain(
            [f"{stem}{ending}", f"{_short(place.name)}{'-' * bool(pages)}{pages}{ending}"], numbered
        )
        name = next(one for one in tries if str(place.with_name(one)).lower() not in taken)
        taken.add(str(place.with_name(name)).lower())
        names.append(place.with_name(name))
    return names


def _own_place(place: Path) -> Path:
    """Not below a folder that is called as one of our own files."""
    first, *others = place.parts
    return Path(f"{first}_", *others) if others and first.lower() in OWN_FILES else place


def _short(name: str) -> str:
    """A name with room for an ending: systems take 255 bytes."""
    return name.encode(errors="surrogateescape")[:_LONGEST_NAME].decode(errors="ignore") if len(name) > 60 else name


def make_folder(out: Path) -> None:
    """The folder that is written to, made where it is not there yet; `ConfigError` where it cannot be one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(f"{out} cannot be a folder: {what}", hint="Give another name.") from None
