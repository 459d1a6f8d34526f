"""What a drawer gives back: a picture, what may be asked about it, and where each character stands."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture with known answers.

    Attributes:
        image: uint8, [height, width, 3], RGB.
        questions: (question, answer) pairs; every answer can be read off the picture.
        task: the name `make_sample` was asked for.
        characters: every printed character but spaces, line by line from the left (dense supervision of the tower).
    """

    image: Picture
    questions: tuple[tuple[str, str], ...]
    task: str
    characters: tuple[CharacterBox, ...]


def check_split(split: str) -> Split:
    """Return `split` if it is one of `SPLITS`; raise `ConfigError` otherwise."""
    for known in SPLITS:
        if split == known:
            return known
    raise ConfigError(f"split={split!r} is unknown", hint=f"Use one of {', '.join(SPLITS)}.")
