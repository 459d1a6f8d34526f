"""Names and values for what is drawn, and how they are asked for: shared by charts, tables and forms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, TypeVar

import numpy as np

from pocketvlm.synthetic.sample import NOT_THERE, Question, QuestionKind, Split
from pocketvlm.synthetic.words.vocabulary import draw_text, in_split

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
    if kind == "code":
        return draw_text(rng, "code", split, 6)
    return until_in_split(rng, split, _VALUES[kind])


def until_in_split(rng: np.random.Generator, split: Split, draw: Callable[[np.random.Generator], str]) -> str:
    """The first text of `draw` that belongs to `split`."""
    while not in_split(text := draw(rng), split):
        pass
    return text


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# How dates are printed; the last names the month.
DATE_FORMS = ("%Y-%m-%d", "%d/%m/%Y", "%d.%m.%Y", "%d-%b-%Y")
_DATE_FORMS_IN_DIGITS = DATE_FORMS[:3]


def draw_day(rng: np.random.Generator, years: tuple[int, int] = (1990, 2039)) -> date:
    """A day of `years`, the first and the last included."""
    first = date(years[0], 1, 1)
    return first + timedelta(days=int(rng.integers((date(years[1] + 1, 1, 1) - first).days)))


def format_date(day: date, form: str) -> str:
    """`day` in one of `DATE_FORMS`, in English whatever the locale."""
    return day.strftime(form.replace("%b", MONTHS[day.month - 1]))


def _draw_date(rng: np.random.Generator) -> str:
    return format_date(draw_day(rng), one_of(rng, _DATE_FORMS_IN_DIGITS))


_VALUES: dict[ValueKind, Callable[[np.random.Generator], str]] = {
    "count": lambda rng: str(int(10 ** rng.uniform(0, 3))),
    "amount": lambda rng: f"{int(10 ** rng.uniform(0, 2.7))}.{int(rng.integers(100)):02d}",
    "percent": lambda rng: f"{int(rng.integers(1, 100))}%",
    "time": lambda rng: f"{int(rng.integers(24)):02d}:{int(rng.integers(60)):02d}",
    "date": _draw_date,
    "phone": lambda rng: f"{int(rng.integers(100, 1000))}-{int(rng.integers(10000)):04d}",
}


#: Share of the held-out split's questions that are worded as no question of the training split is.
HELDOUT_WORDINGS = 0.5


@dataclass(frozen=True, slots=True)
class Wordings:
    """The ways to ask for one thing, with {names} of what is filled in.

    Attributes:
        train: the only ones of the training split, and half of the held-out split's questions.
        heldout: the other half; where there are none, all questions are worded as in training.
    """

    train: tuple[str, ...]
    heldout: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator, split: Split) -> str:
        """One of those that `split` may use."""
        is_new = split == "heldout" and self.heldout and rng.random() < HELDOUT_WORDINGS
        return one_of(rng, self.heldout if is_new else self.train)


#: Of all pictures that have a title.
TITLE_QUESTIONS = Wordings(
    ("What is the title?", "Read the title.", "What does the title say?", "What's the title", "title?"),
    heldout=("Give me the title.", "Which title does it have?"),
)


def ask(
    rng: np.random.Generator,
    split: Split,
    wordings: Wordings,
    answer: str,
    kind: QuestionKind = "text",
    **words: str,
) -> Question:
    """A question of `split` in one of `wordings`, filled in with `words`."""
    return Question(wordings.draw(rng, split).format(**words), answer, kind)


def ask_absent(rng: np.random.Generator, split: Split, wordings: Wordings, **words: str) -> Question:
    """A question about something that is not in the picture."""
    return ask(rng, split, wordings, NOT_THERE, "absent", **words)
