"""The synthetic suite: tasks by name, drawn from the held-out split of `pocketvlm.synthetic`.

`ROWS` is the table; a kind of picture that is registered in `synthetic` but has no row of its own is asked its main
question at its easiest level. Example `index` under `seed` is sample (seed, index) of the task's stream, so that runs
can be compared and continued.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.tasks import Clip, Example, Media, MetricName
from pocketvlm.synthetic import LEVELS, REGISTRY, Question, QuestionKind, Sample, make_sample

METRIC_OF_KIND: dict[QuestionKind, MetricName] = {
    "text": "strict",
    "number": "relaxed",
    "box": "iou",
    "absent": "strict",
    "choice": "choice",
    "long": "cer",
    "json": "fields",
}

#: Kinds of questions that have tasks of their own, and are asked in no other.
_ON_THEIR_OWN: tuple[QuestionKind, ...] = ("absent", "json")

#: Asks about things that the pictures do not show, of every kind of picture in turn.
NOT_THERE_TASK = "not-there"

# Samples drawn for one question before giving up: a task whose questions are all of another kind is a mistake.
_ATTEMPTS = 200
# About a quarter of the samples have an absent question where a kind of picture has any at all.
_PROBES = 32


@dataclass(frozen=True)
class Row:
    """A task of the suite.

    Attributes:
        draws: the kind of picture, a key of `synthetic.REGISTRY`.
        level: its difficulty: an index of the levels, or a level of one's own.
        kinds: kinds of questions that may be asked; empty for all but `_ON_THEIR_OWN`.
        pattern: a regular expression that the question's text must contain.
        any_question: draw one of the fitting questions, rather than take the first.
    """

    draws: str
    level: object = 0
    kinds: tuple[QuestionKind, ...] = ()
    pattern: str = ""
    any_question: bool = False

    def is_drawable(self) -> bool:
        """Whether `synthetic` has this kind of picture, at this level."""
        if self.draws not in REGISTRY:
            return False
        return not isinstance(self.level, int) or self.level < len(REGISTRY[self.draws].levels)

    def fits(self, question: Question) -> bool:
        kind_fits = question.kind in self.kinds if self.kinds else question.kind not in _ON_THEIR_OWN
        return kind_fits and re.search(self.pattern, question.text) is not None


_ONE_WORD = replace(LEVELS[3], kinds=("word",), lines=(1, 1))
_ONE_NUMBER = replace(LEVELS[3], kinds=("number",), lines=(1, 1))

ROWS: dict[str, Row] = {
    "words": Row("words", 3),
    "one-word": Row("words", _ONE_WORD),
    "one-number": Row("words", _ONE_NUMBER),
    "words-at-an-angle": Row("words", 5),
    "receipt": Row("receipt", 0),
    "receipt-details": Row("receipt", 1, any_question=True),
    "receipt-json": Row("receipt", 0, kinds=("json",)),
    "invoice": Row("invoice", 0, any_question=True),
    "invoice-json": Row("invoice", 0, kinds=("json",)),
    "table": Row("table", 0, any_question=True),
    "form": Row("form", 0, any_question=True),
    "table-json": Row("table", 0, kinds=("json",)),
    "form-json": Row("form", 0, kinds=("json",)),
    "chart": Row("chart", 0, any_question=True),
    "shapes": Row("shapes", 0, kinds=("text",), any_question=True),
    "grounding": Row("shapes", 0, kinds=("box",)),
    "screen": Row("screen", 0, kinds=("text",), any_question=True),
    "screen-grounding": Row("screen", 0, kinds=("box",)),
    "pair": Row("pair", 0, any_question=True),
    "clip": Row("clip", 0, any_question=True),
    "paragraph": Row("paragraph", 0, kinds=("long",)),
    # Pages of 1344 to 1800 pixels a side: print that only slices show, and print that the overview shows too.
    "small-print": Row("page", 4, kinds=("text",), pattern="^(?!.*title)"),
    "large-print": Row("page", 4, kinds=("text",), pattern="title"),
}


def rows() -> dict[str, Row]:
    """Every task that can be drawn today, by name, in the order of the table."""
    table = {name: row for name, row in ROWS.items() if row.is_drawable()}
    covered = {row.draws for row in table.values()}
    return table | {name: Row(name) for name in REGISTRY if name not in covered and name not in table}


@dataclass(frozen=True)
class SyntheticTask:
    """A row of the table as a task without end."""

    name: str
    row: Row

    @property
    def size(self) -> None:
        return None

    def example(self, index: int, seed: int) -> Example:
        """The question about held-out sample (seed, index); where that has none that fits, about the next of its
        stream, (seed, index, 1) and so on.
        """
        sample, question = self._first_fitting(index, seed)
        return to_example(sample, question, self.name, f"{self.name}/{seed}/{index}")

    def _first_fitting(self, index: int, seed: int) -> tuple[Sample, Question]:
        for sample in self._samples(index, seed):
            fitting = [question for question in sample.questions if self.row.fits(question)]
            if fitting and self.row.any_question:
                return sample, fitting[int(np.random.default_rng([seed, index]).integers(len(fitting)))]
            if fitting:
                return sample, fitting[0]
        raise ConfigError(f"{_ATTEMPTS} samples of {self.row.draws!r} have no question for task {self.name!r}")

    def _samples(self, index: int, seed: int) -> Iterator[Sample]:
        for attempt in range(_ATTEMPTS):
            parts = (seed, index, attempt) if attempt else (seed, index)
            yield make_sample(self.row.draws, parts, "heldout", self.row.level)


@dataclass(frozen=True)
class NotThereTask:
    """Questions about what is not there, of several tasks in turn."""

    parts: tuple[SyntheticTask, ...]
    name: str = NOT_THERE_TASK

    @property
    def size(self) -> None:
        return None

    def example(self, index: int, seed: int) -> Example:
        turn, part = divmod(index, len(self.parts))
        drawn = self.parts[part].example(turn, seed)
        return replace(drawn, id=f"{self.name}/{seed}/{index}", task=self.name, subset=drawn.task)


def to_example(sample: Sample, question: Question, task: str, name: str) -> Example:
    """A question about a sample as an example."""
    media: tuple[Media, ...] = sample.images if sample.fps is None else (Clip(sample.images, sample.fps),)
    return Example(
        id=name,
        task=task,
        media=media,
        question=question.text,
        answers=(question.answer,),
        metric=METRIC_OF_KIND[question.kind],
    )


class SyntheticSuite:
    """All tasks that `synthetic` can draw."""

    def names(self) -> Sequence[str]:
        names = list(rows())
        return [*names, NOT_THERE_TASK] if _with_absent_questions() else names

    def task(self, name: str) -> SyntheticTask | NotThereTask:
        if name == NOT_THERE_TASK and _with_absent_questions():
            return NotThereTask(_with_absent_questions())
        table = rows()
        if name not in table:
            known = ", ".join((*table, NOT_THERE_TASK))  # `names` draws pictures to know the last of them
            raise ConfigError(f"task {name!r} is unknown", hint=f"Use some of {known}.")
        return SyntheticTask(name, table[name])


@cache
def _with_absent_questions() -> tuple[SyntheticTask, ...]:
    """A task of absent questions for each kind of picture that has some, at the level of its first row."""
    found: dict[str, SyntheticTask] = {}
    for row in rows().values():
        if row.draws not in found and _has_absent(row.draws):
            found[row.draws] = SyntheticTask(row.draws, Row(row.draws, row.level, ("absent",)))
    return tuple(found.values())


@cache
def _has_absent(draws: str) -> bool:
    probes = (make_sample(draws, (0, index), "heldout", 0) for index in range(_PROBES))
    return any(question.kind == "absent" for sample in probes for question in sample.questions)
