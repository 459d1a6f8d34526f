"""Names and values for what is drawn, and how they are asked for: shared by charts, tables and forms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, TypeVar

import numpy as np

from pocketvlm.synthetic.sample import NOT_THERE, Question, QuestionKind, Split
from pocketvlm.synthetic.words import draw_text, in_split

T = TypeVar("T")
ValueKind = Literal["word", "count", "amount", "percent", "code", "time", "date", "phone"]
NUMERIC: frozenset[ValueKind] = frozenset({"count", "amount", "percent"})
SHORTEST = 3
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def one_of(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of `choices`, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def integer_in(rng: np.random.Generator, ends: tuple[int, int]) -> int:
    """An integer from ends[0] to ends[1], both included."""
    return int(rng.integers(ends[0], ends[1] + 1))


def draw_names(
    rng: np.random.Generator, split: Split, count: int, longest: int, taken: Collection[str] = ()
) -> tuple[str, ...]:
    """`count` different words of `split` of 3 to `longest` letters, capitalised, none of them in `taken`."""
    names: list[str] = []
    used = {name.lower() for name in taken}
    while len(names) < count:
        name = draw_text(rng, "word", split, longest).lower()
        if len(name) >= SHORTEST and name not in used:
            used.add(name)
            names.append(name.capitalize())
    return tuple(names)


def draw_value(rng: np.random.Generator, kind: ValueKind, split: Split, longest: int = 8) -> str:
    """A value of `kind` in `split`; a word has at most `longest` letters."""
    if kind == "word":
        return draw_names(rng, split, 1, longest)[0]
    while True:
        value = draw_text(rng, "code", split, 6) if kind == "code" else _VALUES[kind](rng)
        if in_split(value, split):
            return value


def _draw_date(rng: np.random.Generator) -> str:
    year, month, day = int(rng.integers(1990, 2040)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    return one_of(
        rng, (f"{year}-{month:02d}-{day:02d}", f"{day:02d}/{month:02d}/{year}", f"{day:02d}.{month:02d}.{year}")
    )


_VALUES: dict[ValueKind, Callable[[np.random.Generator], str]] = {
    "count": lambda rng: str(int(10 ** rng.uniform(0, 3))),
    "amount": lambda rng: f"{int(10 ** rng.uniform(0, 2.7))}.{int(rng.integers(100)):02d}",
    "percent": lambda rng: f"{int(rng.integers(1, 100))}%",
    "time": lambda rng: f"{int(rng.integers(24)):02d}:{int(rng.integers(60)):02d}",
    "date": _draw_date,
    "phone": lambda rng: f"{int(rng.integers(100, 1000))}-{int(rng.integers(10000)):04d}",
}


def ask(
    rng: np.random.Generator, wordings: Sequence[str], answer: str, kind: QuestionKind = "text", **words: str
) -> Question:
    """A question in one of `wordings`, filled in with `words`."""
    return Question(one_of(rng, wordings).format(**words), answer, kind)


def ask_absent(rng: np.random.Generator, wordings: Sequence[str], **words: str) -> Question:
    """A question about something that is not in the picture."""
    return ask(rng, wordings, NOT_THERE, "absent", **words)
