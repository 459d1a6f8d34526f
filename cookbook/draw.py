"""Pictures and clips of the recipes, each with a question and its answer.

Every function takes a NumPy generator and draws one sample. Pictures are RGB, at most 224 pixels a side, which nano
sees as 16 visual tokens at 16x and 64 at 4x.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# The glyphs of ten digits in a script that nobody writes: strokes between the points of a grid of 3 by 3, numbered
# row by row from 0.
GLYPHS = (
    ((0, 8),),
    ((6, 2), (0, 2)),
    ((0, 6), (6, 8)),
    ((0, 2), (2, 8), (4, 6)),
    ((1, 7), (3, 5), (0, 2)),
    ((0, 6), (0, 2), (2, 8)),
    ((0, 8), (2, 6)),
    ((1, 3), (3, 7), (7, 5), (5, 1)),
    ((0, 6), (2, 8), (3, 5)),
    ((0, 2), (6, 8), (1, 7)),
)
FIELDS = ("name", "date", "city", "phone", "mail", "code")
SECONDS = 8  # of a clip, one frame each


class Drawn(NamedTuple):
    """A sample: a picture, or the frames of a clip at one a second, and what is asked.

    Attributes:
        frames: one picture, or `SECONDS` of them.
        question: what is asked.
        answer: what the model should say, to the letter.
        rejected: an answer that it should not prefer to that one, or "".
    """

    frames: tuple[Image.Image, ...]
    question: str
    answer: str
    rejected: str = ""


def draw_script(rng: np.random.Generator) -> Drawn:
    """Two digits of an invented script."""
    digits = rng.integers(0, 10, size=2).tolist()
    picture = Image.new("RGB", (168, 112), _paper(rng))
    pen, ink, width = ImageDraw.Draw(picture), _ink(rng), int(rng.integers(4, 8))
    size, top = int(rng.integers(44, 58)), int(rng.integers(16, 36))
    for place, digit in enumerate(digits):
        left = 12 + 78 * place + int(rng.integers(0, 12))
        points = [(left + size * (n % 3) // 2, top + size * (n // 3) // 2) for n in range(9)]
        for start, end in GLYPHS[digit]:
            pen.line((points[start], points[end]), fill=ink, width=width)
    return Drawn((picture,), "Which number is written here?", "".join(map(str, digits)))


def draw_dots(rng: np.random.Generator) -> Drawn:
    """One to nine dots that do not touch."""
    picture, count = Image.new("RGB", (224, 224), _paper(rng)), int(rng.integers(1, 10))
    pen = ImageDraw.Draw(picture)
    for cell in rng.permutation(9)[:count].tolist():
        x, y = (int(74 * at + 37 + rng.integers(-14, 15)) for at in (cell % 3, cell // 3))
        radius = int(rng.integers(12, 21))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_ink(rng))
    return Drawn((picture,), "How many dots are there?", str(count))


def draw_form(rng: np.random.Generator) -> Drawn:
    """A form of six small boxes, one of which is ticked: a detail that 16x loses."""
    picture = Image.new("RGB", (224, 168), _paper(rng))
    pen, ink, ticked = ImageDraw.Draw(picture), _ink(rng), int(rng.integers(len(FIELDS)))
    font = ImageFont.load_default(20)
    for n, place in enumerate(rng.permutation(len(FIELDS)).tolist()):
        x, y = 8 + 112 * (n % 2) + int(rng.integers(0, 6)), 12 + 52 * (n // 2) + int(rng.integers(0, 8))
        pen.rectangle((x, y, x + 18, y + 18), outline=ink, width=2)
        if place == ticked:
            pen.line(((x + 3, y + 9), (x + 8, y + 15), (x + 16, y + 2)), fill=ink, width=3)
        pen.text((x + 26, y - 3), FIELDS[place], fill=ink, font=font)
    return Drawn((picture,), "Which box is ticked?", FIELDS[ticked])


def draw_clip(rng: np.random.Generator) -> Drawn:
    """Eight seconds of a lamp that is on in some of them."""
    paper, ink = _paper(rng), _ink(rng)
    lit = (*rng.integers(120, 256, size=2).tolist(), 0)
    x, y, radius = int(rng.integers(30, 83)), int(rng.integers(30, 83)), int(rng.integers(16, 27))
    count, frames = int(rng.integers(1, SECONDS + 1)), []
    on = set(rng.permutation(SECONDS)[:count].tolist())
    for second in range(SECONDS):
        frame = Image.new("RGB", (112, 112), paper)
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(frame).ellipse(box, fill=lit if second in on else None, outline=ink, width=3)
        frames.append(frame)
    return Drawn(tuple(frames), "For how many seconds is the lamp on?", str(count))


def write_media(sample: Drawn, stem: Path) -> Path:
    """Write a picture as PNG, a clip as MP4 at a frame a second; return the file."""
    if len(sample.frames) == 1:
        path = stem.with_suffix(".png")
        sample.frames[0].save(path)
        return path
    path = stem.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height = sample.frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in sample.frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def _paper(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(215, 256, size=3).tolist()
    return red, green, blue


def _ink(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 110, size=3).tolist()
    return red, green, blue


DRAWS: dict[str, Callable[[np.random.Generator], Drawn]] = {
    "script": draw_script,
    "dots": draw_dots,
    "form": draw_form,
    "clip": draw_clip,
}
