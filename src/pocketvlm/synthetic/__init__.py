"""Pictures with known answers, drawn from a seed: for training, tests and benchmarks."""

from __future__ import annotations

import hashlib

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.sample import CharacterBox, Sample, Split, check_split
from pocketvlm.synthetic.text import LEVELS, Difficulty, draw_words

__all__ = ["LEVELS", "TASKS", "CharacterBox", "Difficulty", "Sample", "Split", "make_sample"]

TASKS = ("words",)


def make_sample(
    task: str,
    rng_or_seed: np.random.Generator | int | tuple[int, ...],
    split: Split = "train",
    difficulty: int | Difficulty = 0,
) -> Sample:
    """Draw one picture with its questions.

    Args:
        task: one of `TASKS`.
        rng_or_seed: a generator, a seed, or (seed, index, …). The same seed gives the same picture in every process
            and in any order; each task and split has its own stream.
        split: "train" or "heldout": disjoint words, numbers and font families.
        difficulty: a level (an index of `LEVELS` for words) or, for words, a `Difficulty` of your own.
    """
    split = check_split(split)
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is unknown", hint=f"Use one of {', '.join(TASKS)}.")
    rng = rng_or_seed if isinstance(rng_or_seed, np.random.Generator) else _stream(task, rng_or_seed, split)
    level = difficulty if isinstance(difficulty, Difficulty) else _level(difficulty, len(LEVELS))
    return draw_words(rng, level if isinstance(level, Difficulty) else LEVELS[level], split)


def _level(value: int, count: int) -> int:
    if not 0 <= value < count:
        raise ConfigError(f"difficulty={value} is unknown", hint=f"Use a level from 0 to {count - 1}.")
    return value


def _stream(task: str, seed: int | tuple[int, ...], split: Split) -> np.random.Generator:
    parts = (seed,) if isinstance(seed, int) else seed
    name = hashlib.blake2b(f"{task}/{split}".encode(), digest_size=4).digest()
    return np.random.default_rng([int.from_bytes(name, "big"), *parts])
