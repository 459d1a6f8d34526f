"""ChartQA: as published, or as Parquet on the Hugging Face hub.

Published (vis-nlp/ChartQA, "ChartQA Dataset"): `test/test_human.json` and `test/test_augmented.json`, each a list of
{imgname, query, label}, pictures in `test/png/`. Hub: `data/test-*.parquet` with type, question, answer
(lmms-lab/ChartQA) or human_or_machine, query, label (HuggingFaceM4/ChartQA), the picture as bytes. The two halves are
also counted by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pocketvlm.evaluation.public_sets.files import (
    Lazy,
    Row,
    find_picture,
    missing,
    read_json_rows,
    texts,
    value,
)
from pocketvlm.evaluation.public_sets.prompts import SHORT_ANSWER
from pocketvlm.evaluation.public_sets.tables import ParquetTable, parquet_files
from pocketvlm.evaluation.tasks import Example, Media

TITLE = "ChartQA"
SPLITS = ("test", "val", "train")
HALVES = ("human", "augmented")


class _Question(NamedTuple):
    """A record, which half it is of, and its number there."""

    row: Row
    half: str
    number: int
    path: Path


def examples(folder: Path, split: str) -> Sequence[Example]:
    """The questions of `split`, those written by people first; `ConfigError` when a file is not in `folder`."""
    for root in (folder, folder / "ChartQA Dataset"):
        paths = [root / split / f"{split}_{half}.json" for half in HALVES]
        if any(path.is_file() for path in paths):
            return _published(paths, root / split / "png")
    shards = parquet_files((folder, folder / "data"), (split,))
    if not shards:
        places = [folder / split / f"{split}_{half}.json" for half in HALVES]
        hint = "Give the folder that the set was unpacked in."
        raise missing(TITLE, [*places, folder / "data" / f"{split}-*.parquet"], hint)
    return _hub(ParquetTable(shards), shards[0])


def _published(paths: Sequence[Path], pictures: Path) -> Sequence[Example]:
    questions: list[_Question] = []
    for half, path in zip(HALVES, paths, strict=True):
        if not path.is_file():
            raise missing(TITLE, [path], "Both halves belong to the score.")
        questions += [_Question(row, half, number, path) for number, row in enumerate(read_json_rows(path))]

    def make(question: _Question) -> Example:
        name = str(value(question.row, "imgname", question.path))
        return _example(question, "query", "label", find_picture(TITLE, name, [pictures]))

    return Lazy(questions, make)


def _hub(table: ParquetTable, path: Path) -> Sequence[Example]:
    asked, answered = ("query", "label") if table.rows and "query" in table.rows[0] else ("question", "answer")

    def half(row: Row) -> str:
        origin = row.get("type", row.get("human_or_machine"))  # the latter is a class label: 0 is human
        return "human" if origin in ("human_test", "human", 0) else "augmented"

    questions = [_Question(row, half(row), number, path) for number, row in enumerate(table.rows)]
    return Lazy(questions, lambda question: _example(question, asked, answered, table.picture(question.number)))


def _example(question: _Question, asked: str, answered: str, picture: Media) -> Example:
    return Example(
        id=f"{question.half}-{question.number}",
        task="chartqa",
        media=(picture,),
        question=SHORT_ANSWER(str(value(question.row, asked, question.path))),
        answers=texts(question.row, answered, question.path),
        metric="relaxed",
        subset=question.half,
    )
