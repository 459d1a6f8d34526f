"""Documents and a schema → rows: pages are answered many at a time, and merged in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pocketvlm.documents.confidence import confidences
from pocketvlm.documents.inputs import Document, page_source
from pocketvlm.documents.journal import Done
from pocketvlm.errors import PocketVLMError
from pocketvlm.grammar.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM

PROMPT = "Extract the data as JSON."  # the schema follows on a line of its own, as nano was trained
PROMPT_VERSION = 1  # counts up whenever the prompt changes, so that pages are read again


def answer_pages(
    vlm: VLM,
    documents: Sequence[Document],
    done: Done,
    schema: Mapping[str, Any],
    *,
    prompt: str = PROMPT,
    options: Mapping[str, Any] | None = None,
    concurrency: int = 8,
    report: Callable[[], None] | None = None,
) -> None:
    """Answer each page that is not done; what fails is left out of `done` where another run may fare better.

    Args:
        options: of pictures and sampling.
        concurrency: pages under way at a time.
        report: called after each page.

    Raises:
        OutputError: a page could not be kept.
    """
    structure = StructuredOutputs(json=dict(schema))
    question = f"{prompt}\n{json.dumps(schema, ensure_ascii=False)}"
    fixed = {"temperature": 0, **(options or {}), "logprobs": 0, "structured_outputs": structure}

    def requests() -> Iterator[tuple[tuple[str, int], list[dict[str, Any]], dict[str, Any]]]:
        asked = set()  # the same content under two names is read once
        for document in documents:
            for page in document.pages:
                key = (document.digest, page)
                if done.get(key) is None and key not in asked:
                    asked.add(key)
                    image = {"type": "image", "image": page_source(document, page)}
                    yield key, [{"role": "user", "content": [image, {"type": "text", "text": question}]}], fixed

    for key, outcome in vlm.as_completed(requests(), ahead=concurrency):
        if isinstance(outcome, Exception) and not isinstance(outcome, PocketVLMError):
            raise outcome
        done.add(key, _failure(outcome) if isinstance(outcome, Exception) else _page(outcome[0]))
        if report:
            report()


def rows_of(documents: Sequence[Document], done: Done, *, per_page: bool = False) -> Iterator[dict[str, Any]]:
    """The rows, in the order of the documents: one of each, or of each page.

    Yields:
        `file`, `page` or `pages` (from 1), `data`, `confidence` of each field, and `error` (None where all is well).
    """
    for document in documents:
        pages = [(page, done.get((document.digest, page))) for page in document.pages]
        if not pages:
            where: dict[str, Any] = {"page": None} if per_page else {"pages": []}
            yield {"file": document.name, **where, "data": None, "confidence": {}, "error": document.error}
        elif per_page:
            for page, found in pages:
                yield {"file": document.name, "page": page, **(found or _missing())}
        else:
            read = [found or _missing() for _, found in pages]
            yield {"file": document.name, "pages": [page for page, _ in pages], **merge_pages(read)}


def merge_pages(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of several pages.

    A single value is that of the first page that has one which is neither null, "" nor 0; arrays are joined in the
    order of the pages; objects are merged field by field. A confidence goes with its value. A page that failed gives
    nothing, and its reason stands in `error`.
    """
    data: Any = None
    confidence: dict[str, float] = {}
    for page in pages:
        if page["data"] is not None:
            data = _merged(data, page["data"], "", "", page["confidence"], confidence)
    errors = [f"page {number}: {page['error']}" for number, page in enumerate(pages, 1) if page["error"]]
    if len(pages) == 1 and errors:
        errors = [pages[0]["error"]]
    return {"data": data, "confidence": confidence, "error": "; ".join(errors) or None}


def _merged(old: Any, new: Any, name: str, was: str, known: Mapping[str, float], out: dict[str, float]) -> Any:
    """`new`, called `was` on its page, put behind `old`, called `name` in the row."""
    if isinstance(new, dict) and isinstance(old, (dict, type(None))):
        row = dict(old or {})
        for key, value in new.items():
            row[key] = _merged(row.get(key), value, _join(name, key), _join(was, key), known, out)
        return row
    if isinstance(new, list) and isinstance(old, (list, type(None))):
        items = list(old or [])
        for index, value in enumerate(new):
            items.append(_merged(None, value, _join(name, str(len(items))), _join(was, str(index)), known, out))
        return items
    if old in (None, "", 0):
        out.pop(name, None)
        if was in known:
            out[name] = known[was]
        return new
    return old


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _page(answer: Answer) -> dict[str, Any]:
    try:
        data = json.loads(answer.text)
    except ValueError:
        return _failure("the answer was cut off; --max-tokens allows longer ones")
    return {"data": data, "confidence": confidences(answer), "error": None}


def _failure(reason: Exception | str) -> dict[str, Any]:
    return {"data": None, "confidence": {}, "error": str(reason)}


def _missing() -> dict[str, Any]:
    return _failure("the page was not read")
