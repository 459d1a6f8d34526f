"""Pages of documents → what became of each: many are under way at a time, and documents come out in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pocketvlm.api.retry import answer_each
from pocketvlm.documents.inputs import Document, page_source
from pocketvlm.documents.journal import Done, Key, Value
from pocketvlm.errors import EngineError, PocketVLMError

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM

CONCURRENCY = 16  # pages under way at a time: as many as a step of the engine decodes well, and some being opened


@dataclass(frozen=True)
class PageTask:
    """What every page is asked, and what becomes of its answer.

    Attributes:
        question: behind the picture of the page.
        value_of: an answer → JSON values, "error" among them: None, or what is wrong with it.
        lost: what stands there for a page that has no answer; the reason is added as "error".
        options: of pictures and sampling.
    """

    question: str
    value_of: Callable[[Answer], Value]
    lost: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def conversation(self, page: Any) -> list[dict[str, Any]]:
        """The question about a page, which is named as a picture may be."""
        content = [{"type": "image", "image": page}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": content}]

    def outcome(self, outcome: list[Answer] | Exception) -> tuple[Value, bool]:
        """What became of a page, and whether later runs need not try it again."""
        if isinstance(outcome, Exception):
            is_ours = isinstance(outcome, PocketVLMError | EngineError)
            reason = str(outcome) if is_ours else f"a fault of the program: {type(outcome).__name__}: {outcome}"
            return {**self.lost, "error": reason}, False
        return self.value_of(outcome[0]), True


def keys_of(document: Document) -> list[Key]:
    """Of its pages, in their order."""
    return [(document.digest, page) for page in document.pages]


# Asks about all pages that are not done: (key, what became of the page, whether that is kept for later runs).
Asking = Callable[[Sequence[Document], Done, PageTask], Iterator[tuple[Key, Value, bool]]]


def answer_documents(
    asking: Asking | None,
    documents: Sequence[Document],
    done: Done,
    task: PageTask,
    *,
    report: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Document, list[Value]]]:
    """Each document with what became of its pages, in order, as soon as it and those before it are complete.

    The same page under two names is asked once. A page that cannot be read, or whose answer was lost, has its reason
    as `error`; the next run tries it again. So it does where the file changed after it was hashed.

    Args:
        asking: who answers; None where all pages are done.
        report: called after each page that was answered now.

    Raises:
        ConfigError: the options cannot be honoured, whatever the page; nothing was asked then.
        OutputError: a page could not be noted.
    """
    waiting = iter(documents)
    current = next(waiting, None)

    def complete() -> Iterator[tuple[Document, list[Value]]]:
        nonlocal current
        while current is not None and all(key in done for key in keys_of(current)):
            yield current, [done.get(key) or {} for key in keys_of(current)]
            current = next(waiting, None)

    yield from complete()
    if current is None:
        return
    assert asking is not None
    read_from = dict(pages_to_ask(documents, done))
    for key, value, keep in asking(documents, done, task):
        done.add(key, value, keep=keep and not read_from.pop(key).has_changed)
        report()
        yield from complete()


def ask_here(
    vlm: VLM, concurrency: int, documents: Sequence[Document], done: Done, task: PageTask
) -> Iterator[tuple[Key, Value, bool]]:
    """`Asking` of one model in this process, with `concurrency` pages under way at a time."""
    vlm.prepare([{"role": "user", "content": task.question}], task.options)  # said once, and not of each page
    under_way: dict[Key, Document] = {}

    def keys() -> Iterator[Key]:
        for key, document in pages_to_ask(documents, done):
            under_way[key] = document
            yield key

    for key, outcome in answer_each(vlm, keys(), lambda key: request_of(key, under_way[key], task)[1:], concurrency):
        del under_way[key]
        yield key, *task.outcome(outcome)


def request_of(key: Key, document: Document, task: PageTask) -> tuple[Key, list[dict[str, Any]], Mapping[str, Any]]:
    """What is asked about a page, as `VLM.as_completed` takes it."""
    return key, task.conversation(page_source(document, key[1])), task.options


def pages_to_ask(documents: Sequence[Document], done: Done) -> Iterator[tuple[Key, Document]]:
    """Each page that is not done, once."""
    asked = set[Key]()
    for document in documents:
        for key in keys_of(document):
            if key not in done and key not in asked:
                asked.add(key)
                yield key, document
