"""Pictures with known answers, drawn from a seed: for training, tests and benchmarks.

Each task is a module with `LEVELS`, from easy to hard, and a function that draws a sample of a level from a random
generator; `REGISTRY` is the list of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.charts import samples as charts
from pocketvlm.synthetic.documents import forms, invoices, pages, paragraphs, receipts, screens, tables, text
from pocketvlm.synthetic.documents.receipts import RECEIPT_LEVELS, ReceiptLevel
from pocketvlm.synthetic.documents.text import LEVELS, Difficulty
from pocketvlm.synthetic.sample import NOT_THERE, CharacterBox, Question, QuestionKind, Sample, Split, check_split
from pocketvlm.synthetic.scenes import clips, pairs, shapes
from pocketvlm.synthetic.scenes.pair_scenes import PAIR_LEVELS

__all__ = [
    "LEVELS",
    "NOT_THERE",
    "RECEIPT_LEVELS",
    "REGISTRY",
    "TASKS",
    "CharacterBox",
    "Difficulty",
    "Question",
    "QuestionKind",
    "ReceiptLevel",
    "Sample",
    "Split",
    "make_sample",
]


class Task(NamedTuple):
    """A kind of picture.

    Attributes:
        draw: (generator, level, split, task name) to sample.
        levels: from easy to hard.
    """

    draw: Callable[..., Sample]
    levels: Sequence[Any]


REGISTRY: dict[str, Task] = {
    "words": Task(text.draw_words, LEVELS),
    "receipt": Task(receipts.draw_receipt, RECEIPT_LEVELS),
    "invoice": Task(invoices.draw_invoice, invoices.INVOICE_LEVELS),
    "table": Task(tables.draw_table, tables.TABLE_LEVELS),
    "form": Task(forms.draw_form, forms.FORM_LEVELS),
    "chart": Task(charts.draw_chart, charts.CHART_LEVELS),
    "shapes": Task(shapes.draw_shapes, shapes.SHAPE_LEVELS),
    "screen": Task(screens.draw_screen, screens.SCREEN_LEVELS),
    "pair": Task(pairs.draw_pair, PAIR_LEVELS),
    "clip": Task(clips.draw_clip, clips.CLIP_LEVELS),
    "paragraph": Task(paragraphs.draw_paragraph, paragraphs.PARAGRAPH_LEVELS),
    "page": Task(pages.draw_page, pages.PAGE_LEVELS),
}
TASKS = tuple(REGISTRY)


def make_sample(
    task: str,
    rng_or_seed: np.random.Generator | int | tuple[int, ...],
    split: Split = "train",
    difficulty: object = 0,
) -> Sample:
    """Draw one sample: a picture, several, or a clip, with its questions.

    Args:
        task: one of `TASKS`.
        rng_or_seed: a generator, a seed, or (seed, index, …). The same seed gives the same sample in every process
            and in any order; each task and split has its own stream.
        split: "train" or "heldout": disjoint words, numbers, font families and layout families. Half of the held-out
            questions are in wordings that the training split never uses.
        difficulty: a level of the task, that is an index of `REGISTRY[task].levels`; or a level of your own, made by
            the class of those.

    Raises:
        ConfigError: a task, split or level that does not exist.
    """
    split = check_split(split)
    if task not in REGISTRY:
        raise ConfigError(f"task {task!r} is unknown", hint=f"Use one of {', '.join(TASKS)}.")
    rng = rng_or_seed if isinstance(rng_or_seed, np.random.Generator) else _stream(task, rng_or_seed, split)
    entry = REGISTRY[task]
    return entry.draw(rng, _level(difficulty, entry.levels), split, task)


def _level(value: object, levels: Sequence[Any]) -> object:
    kind = type(levels[0])
    if isinstance(value, kind):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(levels):
        raise ConfigError(
            f"difficulty={value!r} is unknown", hint=f"Use a level from 0 to {len(levels) - 1} or a {kind.__name__}."
        )
    return levels[value]


def _stream(task: str, seed: int | tuple[int, ...], split: Split) -> np.random.Generator:
    parts = (seed,) if isinstance(seed, int) else seed
    name = hashlib.blake2b(f"{task}/{split}".encode(), digest_size=4).digest()
    return np.random.default_rng([int.from_bytes(name, "big"), *parts])
