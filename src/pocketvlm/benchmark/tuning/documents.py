"""What is learnt: pictures that look like pages, with answers of uneven length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.processing.media.encode import encode_png
from pocketvlm.training.data.sample import Sample

LINE, STROKE = 14, 3  # pixels from line to line, and of a letter
_WORDS = (
    "total",
    "amount",
    "of",
    "the",
    "invoice",
    "paid",
    "in",
    "cash",
    "on",
    "receipt",
    "number",
    "date",
    "and",
    "tax",
)


def documents(count: int, side: int, words: int, seed: int) -> list[Sample]:
    """Samples of one page and one answer each.

    Args:
        side: pixels of a page's width; its height is from half of that up to as much.
        words: of the longest answers; the shortest have one, and most are short.
        seed: the same samples for the same seed.
    """
    draw = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        picture = page(int(draw.integers(side // 2, side + 1)), side, draw)
        length = max(1, round(words * float(draw.random()) ** 2))
        answer = " ".join(_WORDS[int(i)] for i in draw.integers(0, len(_WORDS), length)) + "."
        question = {"type": "text", "text": "What does this page say?"}
        content = [{"type": "image", "image": encode_png(picture)}, question]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
        samples.append(Sample(messages, f"page {number}"))
    return samples


def page(height: int, width: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: dark strokes in lines on white."""
    picture = np.full((height, width, 3), 250, np.uint8)
    for top in range(LINE, height - LINE, LINE):
        dark = draw.random(width // STROKE) < 0.5
        dark &= np.arange(len(dark)) < draw.integers(len(dark) // 3, len(dark) + 1)  # lines end somewhere
        picture[top : top + LINE // 2, : len(dark) * STROKE][:, np.repeat(dark, STROKE)] = 30
    return picture
