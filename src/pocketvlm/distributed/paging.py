"""`pocketvlm read --ray` and `extract --ray`: the pages of documents, each opened where it is prepared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.api.processed import PROMPT_OPTIONS, process
from pocketvlm.distributed.fleet import Fleet
from pocketvlm.distributed.stages import ModelSpec, Outcome, Row
from pocketvlm.documents.inputs import Document, page_source
from pocketvlm.documents.journal import Done, Key, Value
from pocketvlm.documents.pages import PageTask, pages_to_ask
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.processing.processor import Processor
from pocketvlm.remote_files import RemoteFile


@dataclass(frozen=True)
class _Pages:
    """The `Work` of a task. A row says which page of which file."""

    task: PageTask

    def request(self, row: Row) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
        page = RemoteFile(row["url"], row["page"]) if "url" in row else row["page"]
        return self.task.conversation(page), self.task.options

    def value(self, row: Row, outcome: Outcome) -> tuple[Value, bool]:  # noqa: ARG002
        return self.task.outcome(outcome)


def ask_on(
    fleet: Fleet, documents: Sequence[Document], done: Done, task: PageTask
) -> Iterator[tuple[Key, Value, bool]]:
    """`Asking` of the engines of a fleet. Files must have the same paths on every machine."""
    check(fleet.spec, task)
    keys: list[Key] = []

    def rows() -> Iterator[tuple[int, Row]]:
        for key, document in pages_to_ask(documents, done):
            keys.append(key)
            source = page_source(replace(document, path=document.path.absolute()), key[1])
            elsewhere = {"url": str(source), "page": source.pages} if isinstance(source, RemoteFile) else None
            yield len(keys) - 1, elsewhere or {"page": source}

    for number, (value, keep) in fleet.answer(rows(), _Pages(task)):
        yield keys[number], value, keep


def check(spec: ModelSpec, task: PageTask) -> None:
    """Say once, and not of each page, what cannot be honoured whatever the page; `PocketVLMError`."""
    directory = spec.directory()
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    process(processor, [{"role": "user", "content": task.question}], task.options)
    sampling = {name: value for name, value in task.options.items() if name not in PROMPT_OPTIONS}
    params = SamplingParams.from_options(sampling, SamplingParams.defaults_of(directory.configs.generation))
    if params.structured_outputs is not None:
        from pocketvlm.grammar.compiler import GrammarCompiler

        tokenizer = processor.tokenizer
        compiler = GrammarCompiler(tokenizer, directory.config.text.vocab_size, tokenizer.stop_ids)
        try:
            compiler.compile(params.structured_outputs)
        finally:
            compiler.close()
