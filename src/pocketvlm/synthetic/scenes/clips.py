"""Clips of figures, a frame a second: which way one moves, whether it stops, what comes first and when, or never."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketvlm.synthetic.drawing.canvas import Canvas
from pocketvlm.synthetic.drawing.figures import SHAPES, colours_on, draw_ground
from pocketvlm.synthetic.drawing.lines import wear
from pocketvlm.synthetic.sample import Question, Sample, Split, choose_layout
from pocketvlm.synthetic.scenes import arrangements
from pocketvlm.synthetic.scenes.motions import (
    DIAGONALS,
    DIRECTIONS,
    HELDOUT_PATHS,
    TRAIN_PATHS,
    Arrivals,
    Motion,
    draw_arrivals,
    draw_motion,
)
from pocketvlm.synthetic.scenes.shape_wordings import COLOUR_QUESTIONS
from pocketvlm.synthetic.words.values import Wordings, ask, ask_absent, integer_in, one_of

DIRECTION_QUESTIONS = Wordings(
    (
        "Which way does the {name} move?",
        "In which direction does the {name} move?",
        "Where does the {name} move?",
        "direction of the {name}?",
    ),
    heldout=("Which way is the {name} going?", "Where's the {name} moving to"),
)
MOVES_QUESTIONS = Wordings(
    ("Does the {name} move?", "Is the {name} moving?", "Does the {name} change its place?"),
    heldout=("Is the {name} in motion?", "does the {name} go anywhere"),
)
STOPS_QUESTIONS = Wordings(
    ("Does the {name} stop?", "Does the {name} stop moving?", "Does the {name} stop before the end?"),
    heldout=("Does the {name} come to a stop?", "Is the {name} standing still at the end?"),
)
MOVER_QUESTIONS = Wordings(
    ("Which shape moves?", "What moves?", "Which shape is moving?", "moving shape?"),
    heldout=("What's moving", "Name the shape that moves."),
)
END_COLOUR_QUESTIONS = Wordings(
    (
        "What colour is the {name} at the {time}?",
        "At the {time}, what colour is the {name}?",
        "Which colour is the {name} at the {time}?",
        "colour of the {name} at the {time}?",
    ),
    heldout=("What's the colour of the {name} at the {time}", "{name} at the {time}: which colour?"),
)
CHANGES_QUESTIONS = Wordings(
    (
        "Does the {name} change its colour?",
        "Does the colour of the {name} change?",
        "Is the {name} changing its colour?",
    ),
    heldout=("Does the {name} get another colour?", "does the {name} turn another colour"),
)
CHANGE_FRAME_QUESTIONS = Wordings(
    (
        "In which frame does the {name} change its colour?",
        "In which frame does the colour change?",
        "Which frame is the first with another colour?",
        "first frame with another colour?",
    ),
    heldout=("When does the {name} change its colour, in which frame?",),
)
FRAME_QUESTIONS = Wordings(
    (
        "In which frame does the {name} appear?",
        "Which frame is the first with the {name}?",
        "In which frame do you first see the {name}?",
        "first frame with the {name}?",
    ),
    heldout=("When does the {name} appear, in which frame?", "In which frame does the {name} come?"),
)
FIRST_QUESTIONS = Wordings(
    ("Which shape comes {which}?", "What comes {which}?", "Which shape appears {which}?", "{which} shape?"),
    heldout=("What's the {which} shape", "Name the shape that comes {which}."),
)
NEXT_QUESTIONS = Wordings(
    (
        "Which shape comes {relation} the {name}?",
        "What comes {relation} the {name}?",
        "Which shape appears {relation} the {name}?",
        "shape {relation} the {name}?",
    ),
    heldout=("What appears {relation} the {name}?", "Name the shape that comes {relation} the {name}."),
)
COUNT_QUESTIONS = Wordings(
    (
        "How many shapes appear?",
        "How many shapes are there in all?",
        "How many shapes do you see?",
        "how many shapes in all",
    ),
    heldout=("Count the shapes in all frames.", "number of shapes in all?"),
)
COLOURS_QUESTIONS = Wordings(
    (
        "How many different colours are there?",
        "How many different colours do the shapes have?",
        "How many different colours do you see?",
        "how many different colours",
    ),
    heldout=("Count the different colours.", "number of different colours?"),
)

FPS = 1.0
ABSENT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class ClipLevel:
    """How hard the clips are.

    Attributes:
        sizes: (height, width) choices of a frame, in pixels.
        frames: fewest and most frames.
        pixels: shortest and longest longer side of a figure.
        arrivals: most figures that come one after another.
        beside: most figures that stand by while one moves.
        diagonals: whether figures move diagonally too.
        questions: most questions but that about what is not there.
        variety: share of grounds that are not white; some of these have a texture.
        wear: strength of blur and noise, 0 to 1.
    """

    sizes: tuple[tuple[int, int], ...]
    frames: tuple[int, int]
    pixels: tuple[int, int]
    arrivals: int
    beside: int = 0
    diagonals: bool = False
    questions: int = 4
    variety: float = 0.4
    wear: float = 0.2


CLIP_LEVELS: tuple[ClipLevel, ...] = (
    ClipLevel(sizes=((112, 112),), frames=(4, 4), pixels=(30, 42), arrivals=4),
    ClipLevel(
        sizes=((112, 112), (112, 168), (168, 112), (168, 168)),
        frames=(3, 6),
        pixels=(28, 44),
        arrivals=5,
        beside=1,
        diagonals=True,
        variety=0.6,
        wear=0.4,
    ),
    ClipLevel(
        sizes=((168, 168), (168, 224), (224, 224)),
        frames=(4, 8),
        pixels=(26, 52),
        arrivals=6,
        beside=2,
        diagonals=True,
        questions=5,
        variety=0.8,
        wear=0.5,
    ),
)


def draw_clip(rng: np.random.Generator, level: ClipLevel, split: Split, task: str = "clip") -> Sample:
    """A clip of `level`; the family of the paths is that of `split`, figures and directions are in both."""
    size = one_of(rng, level.sizes)
    path = choose_layout(rng, split, TRAIN_PATHS, HELDOUT_PATHS)
    ground, paper = draw_ground(rng, *size, level.variety)
    colours, count = colours_on(paper), integer_in(rng, level.frames)
    story: Motion | Arrivals
    if rng.random() < 0.55:
        directions = (*DIRECTIONS, *(DIAGONALS if level.diagonals else ()))
        beside = integer_in(rng, (0, level.beside))
        frames, story = draw_motion(rng, path, size, count, colours, level.pixels, directions, beside)
        questions = ask_about_motion(rng, story, split)
    else:
        layout = choose_layout(rng, split, arrangements.TRAIN_LAYOUTS, arrangements.HELDOUT_LAYOUTS)
        frames, story = draw_arrivals(rng, path, layout, size, count, colours, level.pixels, level.arrivals)
        questions = ask_about_arrivals(rng, story, split)
    images, objects = [], []
    for figures in frames:
        canvas = Canvas(ground)
        for figure in figures:
            figure.paint(canvas)
        images.append(np.ascontiguousarray(wear(rng, canvas.image, level.wear)))
        objects.append(canvas.objects)
    lead, rest = questions[0], questions[1:]
    kept = [lead, *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    if rng.random() < ABSENT_SHARE:
        kept.append(_ask_not_there(rng, story, split))
    return Sample(tuple(images), tuple(kept), task, ((),) * count, FPS, path, tuple(objects))


def ask_about_motion(rng: np.random.Generator, motion: Motion, split: Split) -> list[Question]:
    """Questions on `motion`, first the direction or, where nothing moves, the colours."""
    name, out = motion.shape, []
    changes = "yes" if motion.changed is not None else "no"
    if motion.direction:
        out.append(ask(rng, split, DIRECTION_QUESTIONS, motion.direction, name=name))
        out.append(ask(rng, split, STOPS_QUESTIONS, "yes" if motion.stops else "no", name=name))
        if motion.still:
            out.append(ask(rng, split, MOVER_QUESTIONS, name))
    if motion.still and motion.direction and rng.random() < 0.5:
        out.append(ask(rng, split, MOVES_QUESTIONS, "no", name=one_of(rng, motion.still)))
    elif not motion.direction or rng.random() < 0.3:
        out.append(ask(rng, split, MOVES_QUESTIONS, "yes" if motion.direction else "no", name=name))
    colours = [
        ask(rng, split, END_COLOUR_QUESTIONS, motion.colours[-1], name=name, time="end"),
        ask(rng, split, END_COLOUR_QUESTIONS, motion.colours[0], name=name, time="start"),
    ]
    if motion.changed is None:
        colours.append(ask(rng, split, COLOUR_QUESTIONS, motion.colours[0], name=name))
        out.append(one_of(rng, colours))
    else:
        colours.append(ask(rng, split, CHANGE_FRAME_QUESTIONS, str(motion.changed + 1), name=name))
        out += colours
    # Asked of all that change and of some that do not: the answers are about even.
    if motion.changed is not None or rng.random() < 0.4:
        out.append(ask(rng, split, CHANGES_QUESTIONS, changes, name=name))
    if not motion.direction and motion.changed is not None:
        out.insert(0, out.pop(int(rng.integers(len(out)))))
    return out


def ask_about_arrivals(rng: np.random.Generator, arrivals: Arrivals, split: Split) -> list[Question]:
    """Questions on `arrivals`, in random order."""
    shapes, count = arrivals.shapes, len(arrivals.shapes)
    i, j = int(rng.integers(count)), int(rng.integers(1, count))
    out = [
        ask(rng, split, FIRST_QUESTIONS, shapes[0], which="first"),
        ask(rng, split, FIRST_QUESTIONS, shapes[-1], which="last"),
        ask(rng, split, FRAME_QUESTIONS, str(arrivals.starts[i] + 1), name=shapes[i]),
        ask(rng, split, COUNT_QUESTIONS, str(count)),
        ask(rng, split, COLOURS_QUESTIONS, str(len(set(arrivals.colours)))),
        ask(rng, split, COLOUR_QUESTIONS, arrivals.colours[-1 - i], name=shapes[-1 - i]),
        ask(rng, split, NEXT_QUESTIONS, shapes[j], name=shapes[j - 1], relation="after")
        if rng.random() < 0.5
        else ask(rng, split, NEXT_QUESTIONS, shapes[j - 1], name=shapes[j], relation="before"),
    ]
    return [out[k] for k in rng.permutation(len(out))]


def _ask_not_there(rng: np.random.Generator, story: Motion | Arrivals, split: Split) -> Question:
    """About a figure that is never seen, in words that ask about others that are."""
    seen: Sequence[str] = story.shapes if isinstance(story, Arrivals) else (story.shape, *story.still)
    name = one_of(rng, [shape for shape in SHAPES if shape not in seen])
    if isinstance(story, Arrivals):
        return ask_absent(rng, split, one_of(rng, (FRAME_QUESTIONS, COLOUR_QUESTIONS)), name=name)
    if story.direction and rng.random() < 0.6:
        return ask_absent(rng, split, DIRECTION_QUESTIONS, name=name)
    return ask_absent(rng, split, END_COLOUR_QUESTIONS, name=name, time=one_of(rng, ("start", "end")))
