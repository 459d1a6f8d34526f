"""What a drawer gives back: pictures, what may be asked about them, and where each character stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import ConfigError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

Picture = NDArray[np.uint8]


class CharacterBox(NamedTuple):
    """One printed character and the box of its ink, in pixels of the picture; right and bottom are exclusive."""

    character: str
    left: float
    top: float
    right: float
    bottom: float


class ObjectBox(NamedTuple):
    """Something that is no print and the box of its ink, in pixels of the picture; right and bottom are exclusive.

    Attributes:
        kind: the name of a shape, "button", "field", "box" (to tick), "bar", or "point": the column beneath one in a
            chart.
        colour: the name of its colour; empty where it has none with a name.
    """

    kind: str
    colour: str
    left: float
    top: float
    right: float
    bottom: float


QuestionKind = Literal["text", "number", "box", "absent", "choice", "long", "json"]

BOX_STEP = 10  # of the 1,000 parts of a side

#: The answer to every question about something that the pictures do not show.
NOT_THERE = "It is not there."


class Question(NamedTuple):
    """A question with its only right answer.

    Attributes:
        text: what is asked.
        answer: what the model should say, to the letter.
        kind: how an answer is judged: "text" (the same text), "number" (a value read off a scale: near enough counts),
            "box" (a place: overlap counts), "absent" (the answer is `NOT_THERE`), "choice" (the letter of an option),
            "long" (a transcript: wrong characters count), "json" (each of its values counts).
    """

    text: str
    answer: str
    kind: QuestionKind = "text"


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures with known answers.

    Attributes:
        images: uint8, [height, width, 3] each, RGB: one picture, several, or the frames of a clip.
        questions: every answer can be read off the pictures. The first is the main one.
        task: the name `make_sample` was asked for.
        characters: of each picture, every printed character but spaces, line by line from the left (dense supervision
            of the tower).
        objects: of each picture, everything else that is asked about (the same); empty where no such things are drawn.
        fps: frames a second when `images` are the frames of a clip, else None.
        layout: the family of layouts that was drawn; a family belongs to one split only.
    """

    images: tuple[Picture, ...]
    questions: tuple[Question, ...]
    task: str
    characters: tuple[tuple[CharacterBox, ...], ...]
    fps: float | None = None
    layout: str = ""
    objects: tuple[tuple[ObjectBox, ...], ...] = ()

    @property
    def image(self) -> Picture:
        """The first picture."""
        return self.images[0]


def box_answer(left: float, top: float, right: float, bottom: float, height: int, width: int) -> str:
    """A box in pixels of a `height` x `width` picture as the model writes it: <box>x1 y1 x2 y2</box>, 0 to 1000.

    In steps of `BOX_STEP`: nobody places a box more exactly, and a last digit that means nothing is noise to a learner.
    """
    scaled = (left / width, top / height, right / width, bottom / height)
    steps = 1000 // BOX_STEP
    return "<box>" + " ".join(str(BOX_STEP * min(steps, max(0, round(steps * v)))) for v in scaled) + "</box>"


def choose_layout(rng: np.random.Generator, split: Split, train: Sequence[str], heldout: Sequence[str]) -> str:
    """A layout family of `split`."""
    families = train if split == "train" else heldout
    return families[int(rng.integers(len(families)))]


def check_split(split: str) -> Split:
    """Return `split` if it is one of `SPLITS`; raise `ConfigError` otherwise."""
    for known in SPLITS:
        if split == known:
            return known
    raise ConfigError(f"split={split!r} is unknown", hint=f"Use one of {', '.join(SPLITS)}.")
