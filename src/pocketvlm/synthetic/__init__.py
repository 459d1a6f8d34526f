"""Pictures with known answers, drawn from a seed: for training, tests and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.receipts import RECEIPT_LEVELS, ReceiptLevel, draw_receipt
from pocketvlm.synthetic.sample import CharacterBox, Sample, Split, check_split
from pocketvlm.synthetic.text import LEVELS, Difficulty, draw_words

__all__ = [
    "LEVELS",
    "RECEIPT_LEVELS",
    "TASKS",
    "CharacterBox",
    "Difficulty",
    "ReceiptLevel",
    "Sample",
    "Split",
    "make_sample",
]

TASKS = ("words", "receipt")

Level = TypeVar("Level", Difficulty, ReceiptLevel)


def make_sample(
    task: str,
    rng_or_seed: np.random.Generator | int | tuple[int, ...],
    split: Split = "train",
    difficulty: int | Difficulty | ReceiptLevel = 0,
) -> Sample:
    """Draw one picture with its questions.

    Args:
        task: one of `TASKS`.
        rng_or_seed: a generator, a seed, or (seed, index, …). The same seed gives the same picture in every process
            and in any order; each task and split has its own stream.
        split: "train" or "heldout": disjoint words, numbers and font families.
        difficulty: a level, that is an index of `LEVELS` for words or of `RECEIPT_LEVELS` for receipts; or a
            `Difficulty` or `ReceiptLevel` of your own.
    """
    split = check_split(split)
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is unknown", hint=f"Use one of {', '.join(TASKS)}.")
    rng = rng_or_seed if isinstance(rng_or_seed, np.random.Generator) else _stream(task, rng_or_seed, split)
    if task == "words":
        return draw_words(rng, _level(difficulty, Difficulty, LEVELS), split)
    return draw_receipt(rng, _level(difficulty, ReceiptLevel, RECEIPT_LEVELS), split)


def _level(value: object, kind: type[Level], levels: Sequence[Level]) -> Level:
    if isinstance(value, kind):
        return value
    if not isinstance(value, int) or not 0 <= value < len(levels):
        raise ConfigError(
            f"difficulty={value!r} is unknown", hint=f"Use a level from 0 to {len(levels) - 1} or a {kind.__name__}."
        )
    return levels[value]


def _stream(task: str, seed: int | tuple[int, ...], split: Split) -> np.random.Generator:
    parts = (seed,) if isinstance(seed, int) else seed
    name = hashlib.blake2b(f"{task}/{split}".encode(), digest_size=4).digest()
    return np.random.default_rng([int.from_bytes(name, "big"), *parts])
