"""What happens in a clip: a figure that moves, stops or changes its colour, or figures that come one after another.

Frames count from 0 here; clips ask for them from 1. Places are in pixels of the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pocketvlm.synthetic.drawing.figures import SHAPES, Figure, Look, draw_ink, draw_look
from pocketvlm.synthetic.scenes.arrangements import MARGIN, TRIES, is_near, no_room, place_figures
from pocketvlm.synthetic.words.values import one_of

TRAIN_PATHS = ("straight", "slowing", "quickening", "wavy")
HELDOUT_PATHS = ("arched", "zigzag")
PATHS = TRAIN_PATHS + HELDOUT_PATHS

#: (right, down) of each direction.
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIAGONALS: dict[str, tuple[int, int]] = {
    f"{y} {x}": (DIRECTIONS[x][0], DIRECTIONS[y][1]) for y in ("up", "down") for x in ("left", "right")
}
#: A figure moves at least this share of the way that is free.
LEAST_SHARE = 0.6
#: How far it strays to the sides, as a share of the way.
STRAY = 0.15
#: Power of the time in a path that slows down or quickens.
POWER = 1.3


@dataclass(frozen=True, slots=True)
class Motion:
    """One figure in the foreground.

    Attributes:
        shape: of the figure.
        colours: of the figure, frame by frame.
        direction: where it moves; empty where it stands still.
        stops: it stands still from some frame on.
        still: the shapes beside it, none of which moves.
    """

    shape: str
    colours: tuple[str, ...]
    direction: str = ""
    stops: bool = False
    still: tuple[str, ...] = ()

    @property
    def changed(self) -> int | None:
        """The frame from which on it has another colour; None where it keeps its colour."""
        return next((i for i, colour in enumerate(self.colours) if colour != self.colours[0]), None)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Figures of different shapes that come one after another.

    Attributes:
        shapes, colours: in the order of their coming.
        starts: the frame in which each is seen first.
        stay: whether they stay until the end; else each goes when the next one comes.
    """

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    starts: tuple[int, ...]
    stay: bool


Frames = tuple[tuple[Figure, ...], ...]


def trace(
    rng: np.random.Generator, path: str, direction: str, extent: tuple[int, int], size: tuple[int, int], steps: int
) -> list[tuple[int, int]]:
    """(left, top) of a figure of `extent` (width, height) at steps + 1 moments on its way across a frame.

    `size` is the frame's (height, width). The way is at least `LEAST_SHARE` of what is free.
    """
    if path not in PATHS:
        raise ValueError(f"path {path!r} is not one of {', '.join(PATHS)}")
    towards = (DIRECTIONS | DIAGONALS)[direction]
    free = [side - 2 * MARGIN - length for side, length in zip((size[1], size[0]), extent, strict=True)]
    if min(free) <= 0:
        raise no_room(*size)
    # A diagonal way is as long in both directions, or it would look like one of them.
    longest = min(room for room, sign in zip(free, towards, strict=True) if sign)
    way = longest * float(rng.uniform(LEAST_SHARE, 1))
    stray = way * STRAY * float(rng.uniform(0.6, 1)) * (-1 if rng.random() < 0.5 else 1)
    moments = [i / steps for i in range(steps + 1)]
    along = [_progress(path, t) * way for t in moments]
    aside = [_stray(path, t, i) * stray for i, t in enumerate(moments)]
    norm = math.hypot(*towards)
    x = [towards[0] * a - towards[1] / norm * s for a, s in zip(along, aside, strict=True)]
    y = [towards[1] * a + towards[0] / norm * s for a, s in zip(along, aside, strict=True)]
    return [
        (round(left), round(top)) for left, top in zip(_inside(rng, x, free[0]), _inside(rng, y, free[1]), strict=True)
    ]


def _progress(path: str, t: float) -> float:
    if path == "slowing":
        return 1 - (1 - t) ** POWER
    return t**POWER if path == "quickening" else t


def _stray(path: str, t: float, i: int) -> float:
    if path == "wavy":
        return math.sin(2 * math.pi * t)
    if path == "arched":
        return 4 * t * (1 - t)
    return float(i % 2) if path == "zigzag" else 0.0


def _inside(rng: np.random.Generator, values: Sequence[float], room: float) -> list[float]:
    """`values` moved to somewhere between `MARGIN` and `MARGIN` + `room`, and kept there."""
    low, high = min(values), max(values)
    shift = MARGIN - low + float(rng.uniform(0, max(0.0, room - (high - low))))
    return [min(max(value + shift, MARGIN), MARGIN + room) for value in values]


def draw_motion(
    rng: np.random.Generator,
    path: str,
    size: tuple[int, int],
    count: int,
    colours: Sequence[str],
    pixels: tuple[int, int],
    directions: Sequence[str],
    beside: int,
) -> tuple[Frames, Motion]:
    """`count` frames of (height, width) `size`: one figure moves or changes, at most `beside` others stand by."""
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[: 1 + beside]]
    look = draw_look(rng, shapes[0], one_of(rng, colours), pixels)
    form = rng.random()
    # One in five stands still; then it changes its colour, most often.
    moves, stops = form >= 0.2, bool(0.2 <= form < 0.5)
    steps = int(rng.integers(max(1, count // 2 - 1), count - 1)) if stops else count - 1
    direction = one_of(rng, directions)
    places = trace(rng, path, direction, (look.mask.shape[1], look.mask.shape[0]), size, steps)
    places = places + places[-1:] * (count - len(places)) if moves else [one_of(rng, places)] * count
    looks = [look] * count
    if rng.random() < (0.2 if moves else 0.75):
        colour = one_of(rng, [name for name in colours if name != look.colour])
        start = int(rng.integers(1, count))
        looks[start:] = [replace(look, colour=colour, ink=draw_ink(rng, colour))] * (count - start)
    mover = [Figure(one, left, top) for one, (left, top) in zip(looks, places, strict=True)]
    still: list[Figure] = []
    for shape in shapes[1:]:
        other = draw_look(rng, shape, one_of(rng, colours), pixels)
        figure = _place_beside(rng, other, [*mover, *still], size)
        if figure:
            still.append(figure)
    frames = tuple((*still, figure) for figure in mover)
    names = tuple(figure.shape for figure in still)
    return frames, Motion(look.shape, tuple(one.colour for one in looks), direction if moves else "", stops, names)


def _place_beside(
    rng: np.random.Generator, look: Look, others: Sequence[Figure], size: tuple[int, int]
) -> Figure | None:
    (height, width), (h, w) = size, look.mask.shape
    for _ in range(20):
        left, top = int(rng.integers(MARGIN, width - MARGIN - w)), int(rng.integers(MARGIN, height - MARGIN - h))
        figure = Figure(look, left, top)
        if not any(is_near(figure.box, other.box) for other in others):
            return figure
    return None


def draw_arrivals(
    rng: np.random.Generator,
    path: str,
    layout: str,
    size: tuple[int, int],
    count: int,
    colours: Sequence[str],
    pixels: tuple[int, int],
    most: int,
) -> tuple[Frames, Arrivals]:
    """`count` frames in which two to `most` figures come, each on its own (along `path`) or to stay (by `layout`)."""
    stay = bool(rng.random() < 0.35)
    wanted = int(rng.integers(2, min(most, count) + 1))
    for attempt in range(TRIES):
        shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:wanted]]
        tones = [colours[i] for i in rng.permutation(len(colours))[: int(rng.integers(1, wanted + 1, 2).max())]]
        looks = [draw_look(rng, shape, one_of(rng, tones), pixels) for shape in shapes]
        figures = place_figures(rng, layout, looks, *size) if stay else _along(rng, path, looks, size)
        if figures:
            break
        if attempt % 15 == 14:
            wanted = max(2, wanted - 1)
    else:
        raise no_room(*size)
    # Something is seen from the first frame on, so that nothing hangs on a frame that is left out.
    starts = (0, *sorted(int(i) + 1 for i in rng.choice(count - 1, len(looks) - 1, replace=False)))
    frames = []
    for i in range(count):
        seen = [figure for figure, start in zip(figures, starts, strict=True) if start <= i]
        frames.append(tuple(seen if stay else seen[-1:]))
    return tuple(frames), Arrivals(tuple(shapes[: len(looks)]), tuple(f.colour for f in figures), starts, stay)


def _along(rng: np.random.Generator, path: str, looks: Sequence[Look], size: tuple[int, int]) -> tuple[Figure, ...]:
    """`looks` at the points of a path; or all of them in one place."""
    extent = max(look.mask.shape[1] for look in looks), max(look.mask.shape[0] for look in looks)
    places = trace(rng, path, one_of(rng, tuple(DIRECTIONS)), extent, size, len(looks) - 1)
    if rng.random() < 0.4:
        places = places[:1] * len(places)
    return tuple(Figure(look, left, top) for look, (left, top) in zip(looks, places, strict=True))
