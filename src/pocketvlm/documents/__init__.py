"""Files of documents → their text, or rows kept to a schema: `read` and `extract`, as iterators.

```
import pocketvlm
from pocketvlm import documents

vlm = pocketvlm.load("nano")
for row in documents.extract(vlm, "receipts/", "total: number, shop: string"):
    print(row["file"], row["data"], row["confidence"], row["error"])
for page in documents.read(vlm, ["contract.pdf#2-5"]):
    print(page["file"], page["page"], page["text"])
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from pocketvlm.documents import reading
from pocketvlm.documents.calibration import Calibration
from pocketvlm.documents.extracting import extraction, rows_of
from pocketvlm.documents.inputs import Document, find_files, open_documents
from pocketvlm.documents.journal import Done
from pocketvlm.documents.pages import CONCURRENCY, answer_documents, ask_here
from pocketvlm.documents.schema import schema_of
from pocketvlm.errors import ConfigError
from pocketvlm.prompts import packaged

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM

_OURS = {"structured_outputs", "response_format", "logprobs", "top_logprobs", "n", "stream"}
Files = str | PathLike[str] | Sequence[str | PathLike[str]]
__all__ = ["extract", "read"]


def extract(
    vlm: VLM,
    files: Files,
    schema: Any,
    *,
    per_page: bool = False,
    prompt: str | None = None,
    concurrency: int = CONCURRENCY,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """A row of each document, or of each page, in order, each as soon as it is complete.

    Args:
        files: documents (`a.pdf#2-5` chooses pages), pictures, folders, patterns; one or several.
        schema: as `pocketvlm extract --schema` takes it, or a JSON schema as a dict, or a class of Pydantic.
        prompt: what is asked; the schema follows it.
        concurrency: pages under way at a time.
        options: of pictures and sampling, as `VLM.ask` takes them.

    Yields:
        `file`, `pages` (or `page`), from 1, `data`, `confidence` of each field, and `error`, None where all is well.

    Raises:
        ConfigError: a file does not exist, or the schema cannot be honoured; with the first row, options that cannot.
            A file that cannot be read is no error: it has a row that says why.
        CheckpointError: the calibration of confidence in the model's folder is none.
    """
    _check_options(options)
    calibration = Calibration.of(vlm.directory, options)
    task = extraction(schema_of(schema), prompt or packaged()["extract"], options, calibration)
    opened = _open(files)
    return (
        row
        for document, values in answer_documents(partial(ask_here, vlm, concurrency), opened, Done(), task)
        for row in rows_of(document, values, per_page=per_page)
    )


def read(
    vlm: VLM,
    files: Files,
    *,
    format: str = "markdown",
    text_layer: bool = False,
    prompt: str | None = None,
    concurrency: int = CONCURRENCY,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """What each page says, in order, each as soon as it is complete.

    Args:
        files, concurrency, options: as for `extract`.
        format: markdown, text or html, which decides what is asked; `prompt` is asked instead where it is given.
        text_layer: add `text_layer`, the text that a PDF itself holds: None of a picture, "" of a scan without one.

    Yields:
        `file`, `page` (from 1; None for a file that cannot be read), `text`, `tokens`, `seconds`, `finish_reason`,
        `mean_logprob` (of the tokens) and `error`, None where all is well.

    Raises:
        ConfigError: a file does not exist; with the first page, options that cannot be honoured.
    """
    _check_options(options)
    task = reading.transcription(prompt or packaged()[reading.check_format(format)], options)
    opened = _open(files)

    def rows() -> Iterator[dict[str, Any]]:
        with reading.text_layers(text_layer) as layers:
            for document, values in answer_documents(partial(ask_here, vlm, concurrency), opened, Done(), task):
                yield from reading.page_rows(document, values, format, layers=layers)

    return rows()


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what pages are asked with in one way only."""
    for name in sorted(_OURS & options.keys()):
        raise ConfigError(f"{name} is no option of documents", hint="A page has one answer; its form is the schema's.")


def _open(files: Files) -> list[Document]:
    if isinstance(files, bytes) or not isinstance(files, str | PathLike | Sequence):
        raise ConfigError(f"files are of type {type(files).__name__}", hint="Give paths, one or several.")
    words = [files] if isinstance(files, str | PathLike) else list(files)
    return list(open_documents(find_files([str(word) for word in words])))
