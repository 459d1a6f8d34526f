"""Tasks and someone who answers → scored records, those of an earlier run included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from pocketvlm.errors import ConfigError, MediaError, PocketVLMError
from pocketvlm.evaluation.answerers import Answerer, Numbered, Reply
from pocketvlm.evaluation.ranges import RUN
from pocketvlm.evaluation.results import Key, Record, ResultFile
from pocketvlm.evaluation.scoring import score
from pocketvlm.evaluation.tasks import Example, Task, chosen_indices

#: Called with (task, examples done, examples in all).
Progress = Callable[[str, int, int], None]

#: After so many failures in a row a run ends.
MAX_FAILURES_IN_A_ROW = 8


class EvaluationError(PocketVLMError):
    """Every request fails; what was answered so far is kept."""


def evaluate(
    tasks: Sequence[Task],
    answerer: Answerer,
    *,
    count: int,
    seed: int,
    results: ResultFile | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Record]]:
    """Ask `count` examples of each task, or all where there are fewer, and score the answers.

    Args:
        tasks: asked one after the other.
        seed: of drawn examples, and of which ones are taken from a list.
        results: what an earlier run answered is taken from here, failures excepted; new records are added.

    Returns:
        records by task, in the order of the examples.

    Raises:
        EvaluationError: `MAX_FAILURES_IN_A_ROW` examples in a row could not be answered.
        ConfigError: `count` or `seed` is not in its range, an option cannot be honoured, or `results` belongs to other
            examples.
    """
    count, seed = RUN["count"].check("count", count), RUN["seed"].check("seed", seed)
    done = {} if results is None else results.records
    scored: dict[str, list[Record]] = {}
    failures, unreadable = _FailureStreak(), _FailureStreak()
    for task in tasks:
        indices = chosen_indices(task, count, seed)
        records = _kept(task, indices, seed, done)
        waiting = [index for index in indices if index not in records]
        if progress is not None:
            progress(task.name, len(records), len(indices))
        for record in _ask(task, waiting, seed, answerer, failures, unreadable):
            if results is not None:
                results.add(record)
            records[record.index] = record
            if progress is not None:
                progress(task.name, len(records), len(indices))
        scored[task.name] = [records[index] for index in indices]
    return scored


class _FailureStreak:
    """Counts failures in a row; too many are no longer about single examples."""

    def __init__(self) -> None:
        self._length = 0

    def note(self, error: str) -> None:
        self._length = self._length + 1 if error else 0
        if self._length == MAX_FAILURES_IN_A_ROW:
            raise EvaluationError(f"{MAX_FAILURES_IN_A_ROW} examples in a row failed, the last one because: {error}")


def _ask(
    task: Task,
    indices: Sequence[int],
    seed: int,
    answerer: Answerer,
    failures: _FailureStreak,
    unreadable: _FailureStreak,
) -> Iterator[Record]:
    """Yield records of the examples as they are answered, then of those that could not even be read.

    The latter are counted apart: many are read before the first is answered.
    """
    unread: dict[int, str] = {}

    def examples() -> Iterator[Numbered]:
        for index in indices:
            try:
                example = task.example(index, seed)
            except MediaError as error:
                unread[index] = str(error)
                unreadable.note(str(error))
                continue
            unreadable.note("")
            yield index, example

    for index, example, reply in answerer.answer(examples()):
        yield _record(task, index, example, reply)
        failures.note(reply.error)
    for index, error in unread.items():
        blank = Example(f"{task.name}/{index}", task.name, (), "", (), "strict")
        yield _record(task, index, blank, Reply(error=error))


def _kept(task: Task, indices: Sequence[int], seed: int, done: Mapping[Key, Record]) -> dict[int, Record]:
    """Return the answers of an earlier run that need not be asked for again."""
    found = ((index, done.get((task.name, index))) for index in indices)
    kept = {index: record for index, record in found if record is not None and not record.error}
    # Drawn examples follow from the seed, a list may have changed: looking at one of it is cheap, and tells.
    if kept and task.size is not None:
        index = max(kept)
        with suppress(MediaError):
            if task.example(index, seed).id == kept[index].id:
                return kept
            raise ConfigError(
                f"example {index} of task {task.name!r} is not the one that the file of results has",
                hint="Give --out a new file.",
            )
    return kept


def _record(task: Task, index: int, example: Example, reply: Reply) -> Record:
    return Record(
        task=task.name,
        index=index,
        id=example.id,
        subset=example.subset,
        metric=example.metric,
        question=example.question,
        expected=example.answers,
        answer=reply.answer,
        score=0.0 if reply.error else score(reply.answer, example),
        prompt_tokens=reply.prompt_tokens,
        visual_tokens=reply.visual_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=round(reply.seconds, 6),
        error=reply.error,
    )
