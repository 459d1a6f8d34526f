"""MMBench: a tab-separated table with base64 pictures, as published for VLMEvalKit and by its leaderboard.

Columns: index, question, hint, A, B, C, D, answer, category, image, split, and others. A cell without text is no
option. Answers of the test split are not public.

Circular evaluation asks a question once for each rotation of its options and counts it as right only if all are. Files
for it hold the rotations as rows whose index is larger by a multiple of a million; for other files they are made here.
VLMEvalKit, which the published scores are of, always counts MMBench like that.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.public_sets.files import Lazy, Row, find, missing, value
from pocketvlm.evaluation.public_sets.prompts import STEPS_THEN_LETTER, with_letters
from pocketvlm.evaluation.public_sets.tables import TsvTable
from pocketvlm.evaluation.tasks import Example

TITLE = "MMBench"
SPLITS = ("dev_en", "dev_cn", "dev_en_v11", "dev_cn_v11")
_ROTATION = 1_000_000
_LEADERBOARD = {
    "dev_en": ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv"),
    "dev_cn": ("mmbench_dev_cn_20231003.tsv",),
}


class _Question(NamedTuple):
    """A row of the table and how often its options are rotated on top of what the file does."""

    id: str
    row: int
    turns: int = 0


def examples(folder: Path, split: str, circular: bool = False) -> Sequence[Example]:
    """The questions of `split`.

    Args:
        circular: every rotation too; their ids are "INDEX/ROTATION", see `circular_accuracy`.

    Raises:
        ConfigError: the table is not in `folder`, or is no such table.
    """
    places = [folder / name for name in (f"MMBench_{split.upper()}.tsv", *_LEADERBOARD.get(split, ()))]
    path = find(places)
    if path is None:
        raise missing(TITLE, places, "Give the folder that the table lies in.")
    table = TsvTable(path)
    rotated = any(_index(row, path) >= _ROTATION for row in table.rows)
    questions: list[_Question] = []
    for number, row in enumerate(table.rows):
        rotation, index = divmod(_index(row, path), _ROTATION)
        if not circular:
            questions += [_Question(str(index), number)] if rotation == 0 else []
        elif rotated:
            questions.append(_Question(f"{index}/{rotation}", number))
        else:
            turns = len(_options(row, path))
            questions += [_Question(f"{index}/{turn}", number, turn) for turn in range(turns)]
    return Lazy(questions, lambda question: _example(table, question))


def question_of(examples: Sequence[Example]) -> Callable[[int], str]:
    """By the index of one of `examples(circular=True)`, whose rotation it is."""
    assert isinstance(examples, Lazy)
    return lambda index: str(examples.keys[index].id.partition("/")[0])


def circular_accuracy(scores: Mapping[str, float]) -> float:
    """The part of the questions whose rotations are all right.

    Args:
        scores: of each example by its id, 1 for right.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for name, score in scores.items():
        groups[name.partition("/")[0]].append(score)
    return sum(min(group) >= 1 for group in groups.values()) / len(groups) if groups else 0.0


def _example(table: TsvTable, question: _Question) -> Example:
    row, path = table.rows[question.row], table.path
    options = _options(row, path)
    letter = str(value(row, "answer", path)).strip()
    right = string.ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if not 0 <= right < len(options):
        raise ConfigError(
            f"{path}: the answer {letter!r} of question {row['index']} is not the letter of an option",
            hint="Use a split whose answers are public.",
        )
    options = options[question.turns :] + options[: question.turns]
    hint = f"Hint: {row['hint']}\n" if _said(row, "hint") else ""
    lines = "".join(f"{line}\n" for line in with_letters(options))
    return Example(
        id=question.id,
        task="mmbench-circular" if "/" in question.id else "mmbench",
        media=(table.picture(question.row),),
        question=STEPS_THEN_LETTER(f"{hint}{value(row, 'question', path)}\n{lines}"),
        answers=(string.ascii_uppercase[(right - question.turns) % len(options)],),
        metric="choice",
        subset=str(row.get("category", "")),
        choices=tuple(options),
    )


def _index(row: Row, path: Path) -> int:
    try:
        return int(row["index"])
    except ValueError:
        raise ConfigError(f"{path} has the index {row['index']!r:.40}, which is not a number") from None


def _options(row: Row, path: Path) -> list[str]:
    letters = [letter for letter in string.ascii_uppercase if _said(row, letter)]
    if not letters or letters != list(string.ascii_uppercase[: len(letters)]):
        raise ConfigError(f"{path}: question {row['index']} has options {letters}, expected A, B and so on")
    return [str(row[letter]) for letter in letters]


def _said(row: Row, name: str) -> bool:
    return str(row.get(name) or "").strip() not in ("", "nan")
