"""A few coloured shapes: how many, which colour, which shape, where, how they stand to each other, which are not there.

Boxes are asked for in thousandths of the picture's sides; what could be argued about (borderline places) is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pocketvlm.synthetic.drawing.canvas import Canvas
from pocketvlm.synthetic.drawing.figures import (
    SHAPES,
    Figure,
    colours_on,
    draw_ground,
    draw_look,
    other_name,
    plural,
    with_article,
)
from pocketvlm.synthetic.drawing.lines import wear
from pocketvlm.synthetic.sample import Question, Sample, Split, box_answer, choose_layout
from pocketvlm.synthetic.scenes.arrangements import HELDOUT_LAYOUTS, TRAIN_LAYOUTS, TRIES, no_room, place_figures
from pocketvlm.synthetic.scenes.shape_wordings import (
    BOX_QUESTIONS,
    COLOUR_QUESTIONS,
    CORNER_QUESTIONS,
    COUNT_COLOUR_QUESTIONS,
    COUNT_QUESTIONS,
    COUNT_SHAPE_QUESTIONS,
    EXISTS_QUESTIONS,
    HEIGHT_QUESTIONS,
    IN_CORNER_QUESTIONS,
    NEIGHBOUR_QUESTIONS,
    RELATION_QUESTIONS,
    SHAPE_QUESTIONS,
    SIDE_QUESTIONS,
    SIZE_QUESTIONS,
)
from pocketvlm.synthetic.words.values import ask, ask_absent, integer_in, one_of

#: What is asked first, more often than the rest.
MAIN_TOPICS = ("count", "colour", "shape", "box", "side", "relation")
#: Middles this far from the middle line (share of the side) are left or right of it, top or bottom.
SIDE_MARGIN = 0.1
#: In a corner is what has its middle in the outer part of this share in both directions.
CORNER_SHARE = 0.32
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
ABSENT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class ShapeLevel:
    """How hard the pictures of shapes are.

    Attributes:
        sizes: (height, width) choices, in pixels.
        figures: fewest and most shapes.
        small, large: shortest and longest longer side of the two classes of size, in pixels.
        questions: most questions but that about what is not there.
        boxes: most further questions for the box of another figure.
        variety: share of grounds that are not white; some of these have a texture.
        wear: strength of blur and noise, 0 to 1.
    """

    sizes: tuple[tuple[int, int], ...]
    figures: tuple[int, int]
    small: tuple[int, int]
    large: tuple[int, int]
    questions: int = 5
    boxes: int = 0
    variety: float = 0.5
    wear: float = 0.2


SHAPE_LEVELS: tuple[ShapeLevel, ...] = (
    ShapeLevel(
        sizes=(*((224, 224),) * 3, (168, 224), (224, 168), (168, 168), (112, 168), (112, 112)),
        figures=(1, 5),
        small=(35, 42),
        large=(62, 84),
    ),
    ShapeLevel(
        sizes=((224, 224), (224, 280), (280, 224), (280, 280), (320, 320), (252, 308)),
        figures=(1, 6),
        small=(28, 36),
        large=(54, 80),
        variety=0.7,
        wear=0.5,
    ),
    ShapeLevel(
        sizes=((448, 448), (448, 448), (336, 448), (448, 336)),
        figures=(2, 8),
        small=(32, 52),
        large=(78, 120),
        questions=6,
        variety=0.8,
        wear=0.6,
    ),
)


def draw_shapes(rng: np.random.Generator, level: ShapeLevel, split: Split, task: str = "shapes") -> Sample:
    """A picture of shapes of `level`. Shapes and colours are the same in both splits, their layout family is not."""
    height, width = one_of(rng, level.sizes)
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    ground, paper = draw_ground(rng, height, width, level.variety)
    colours = colours_on(paper)
    figures = draw_figures(rng, level, layout, colours, height, width)
    canvas = Canvas(ground)
    for figure in figures:
        figure.paint(canvas)
    image = np.ascontiguousarray(wear(rng, canvas.image, level.wear))
    questions = ask_about(rng, figures, level, colours, height, width, split)
    return Sample((image,), questions, task, ((),), layout=layout, objects=(canvas.objects,))


def draw_figures(
    rng: np.random.Generator, level: ShapeLevel, layout: str, colours: Sequence[str], height: int, width: int
) -> tuple[Figure, ...]:
    """Figures of `level` by `layout`; fewer and smaller ones where the drawn number does not fit."""
    wanted, large_share = integer_in(rng, level.figures), one_of(rng, (0.0, 0.3, 0.5, 0.5, 0.8))
    for attempt in range(TRIES):
        count = max(1, wanted - attempt // 12)
        # Few colours and shapes make counting worth it, many make each figure the only one of its kind.
        tones = [colours[i] for i in rng.permutation(len(colours))[: _variety(rng, count)]]
        forms = [SHAPES[i] for i in rng.permutation(len(SHAPES))[: _variety(rng, count)]]
        looks = []
        for _ in range(count):
            is_large = bool(rng.random() < large_share) and attempt < 60
            size = level.large if is_large else level.small
            looks.append(draw_look(rng, one_of(rng, forms), one_of(rng, tones), size, large=is_large))
        figures = place_figures(rng, layout, looks, height, width)
        if figures:
            return figures
    raise no_room(height, width)


def _variety(rng: np.random.Generator, count: int) -> int:
    return int(rng.integers(1, count + 1, 3).max())


def ask_about(
    rng: np.random.Generator,
    figures: Sequence[Figure],
    level: ShapeLevel,
    colours: Sequence[str],
    height: int,
    width: int,
    split: Split,
) -> tuple[Question, ...]:
    """Questions on `figures`, one a topic; only what the eye can tell without doubt is asked."""
    topics = {
        "count": _ask_count(rng, split, figures, colours),
        "colour": _ask_colour(rng, split, figures),
        "shape": _ask_shape(rng, split, figures),
        "box": _ask_box(rng, split, figures, height, width),
        "side": _ask_side(rng, split, figures, height, width),
        "corner": _ask_corner(rng, split, figures, height, width),
        "relation": _ask_relation(rng, split, figures),
        "neighbour": _ask_neighbour(rng, split, figures),
        "size": _ask_size(rng, split, figures),
        "exists": _ask_exists(rng, split, figures, colours),
    }
    asked = {name: one_of(rng, questions) for name, questions in topics.items() if questions}
    main = one_of(rng, [name for name in MAIN_TOPICS if name in asked])
    rest = [name for name in asked if name != main]
    order = [main, *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    questions = [asked[name] for name in order]
    if level.boxes:
        others = [q for q in topics["box"] if q not in questions]
        questions += [others[i] for i in rng.permutation(len(others))[: level.boxes]]
    if rng.random() < ABSENT_SHARE:
        questions.append(_ask_not_there(rng, split, figures, colours))
    return tuple(questions)


def unique_names(rng: np.random.Generator, figures: Sequence[Figure]) -> list[tuple[str, Figure]]:
    """(what to call it, figure) of each figure that can be told from the others, in random order."""
    shapes, names = Counter(f.shape for f in figures), Counter(f.name for f in figures)
    out = []
    for i in rng.permutation(len(figures)):
        figure = figures[i]
        if shapes[figure.shape] == 1 and rng.random() < 0.5:
            out.append((figure.shape, figure))
        elif names[figure.name] == 1:
            out.append((figure.name, figure))
    return out


def relation(first: Figure, second: Figure) -> set[str]:
    """How `first` stands to `second`, of `RELATIONS`: their boxes must be apart in that direction."""
    (left, top, right, bottom), (x, y, to_x, to_y) = first.box, second.box
    apart = (right <= x, to_x <= left, bottom <= y, to_y <= top)
    return {name for name, is_so in zip(RELATIONS, apart, strict=True) if is_so}


def _ask_count(
    rng: np.random.Generator, split: Split, figures: Sequence[Figure], colours: Sequence[str]
) -> list[Question]:
    shapes, tones = Counter(f.shape for f in figures), Counter(f.colour for f in figures)
    # One in five is about a colour or shape that is not there: then the answer is 0.
    shape = one_of(rng, SHAPES if rng.random() < 0.2 else sorted(shapes))
    colour = one_of(rng, colours if rng.random() < 0.2 else sorted(tones))
    return [
        ask(rng, split, COUNT_QUESTIONS, str(len(figures))),
        ask(rng, split, COUNT_SHAPE_QUESTIONS, str(shapes[shape]), name=plural(shape)),
        ask(rng, split, COUNT_COLOUR_QUESTIONS, str(tones[colour]), name=colour),
    ]


def _ask_colour(rng: np.random.Generator, split: Split, figures: Sequence[Figure]) -> list[Question]:
    counts = Counter(f.shape for f in figures)
    return [ask(rng, split, COLOUR_QUESTIONS, f.colour, name=f.shape) for f in figures if counts[f.shape] == 1]


def _ask_shape(rng: np.random.Generator, split: Split, figures: Sequence[Figure]) -> list[Question]:
    counts = Counter(f.colour for f in figures)
    return [ask(rng, split, SHAPE_QUESTIONS, f.shape, name=f.colour) for f in figures if counts[f.colour] == 1]


def _ask_box(
    rng: np.random.Generator, split: Split, figures: Sequence[Figure], height: int, width: int
) -> list[Question]:
    return [
        ask(rng, split, BOX_QUESTIONS, box_answer(*figure.box, height, width), "box", name=name)
        for name, figure in unique_names(rng, figures)
    ]


def _ask_side(
    rng: np.random.Generator, split: Split, figures: Sequence[Figure], height: int, width: int
) -> list[Question]:
    out = []
    for name, figure in unique_names(rng, figures):
        x, y = figure.centre[0] / width - 0.5, figure.centre[1] / height - 0.5
        if abs(x) >= SIDE_MARGIN:
            out.append(ask(rng, split, SIDE_QUESTIONS, "left" if x < 0 else "right", name=name))
        if abs(y) >= SIDE_MARGIN:
            out.append(ask(rng, split, HEIGHT_QUESTIONS, "top" if y < 0 else "bottom", name=name))
    return out


def corner_of(figure: Figure, height: int, width: int) -> str:
    """The corner that `figure` stands in, such as "top left"; empty where it stands in none."""
    x, y = figure.centre[0] / width, figure.centre[1] / height
    if min(x, 1 - x) > CORNER_SHARE or min(y, 1 - y) > CORNER_SHARE:
        return ""
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _ask_corner(
    rng: np.random.Generator, split: Split, figures: Sequence[Figure], height: int, width: int
) -> list[Question]:
    corners = Counter(corner_of(f, height, width) for f in figures)
    out = []
    for name, figure in unique_names(rng, figures):
        corner = corner_of(figure, height, width)
        if corner:
            out.append(ask(rng, split, CORNER_QUESTIONS, corner, name=name))
            if corners[corner] == 1 and not corners[""]:  # what is near a corner would be a matter of taste
                out.append(ask(rng, split, IN_CORNER_QUESTIONS, figure.shape, place=corner))
    return out


def _ask_relation(rng: np.random.Generator, split: Split, figures: Sequence[Figure]) -> list[Question]:
    named = unique_names(rng, figures)
    for (first, one), (second, other) in pairwise(named):
        true = sorted(relation(one, other))
        if true:
            asked, answer = one_of(rng, true), "yes"
            if rng.random() < 0.5:
                asked, answer = OPPOSITE[asked], "no"
            return [ask(rng, split, RELATION_QUESTIONS, answer, first=first, second=second, relation=asked)]
    return []


def _ask_neighbour(rng: np.random.Generator, split: Split, figures: Sequence[Figure]) -> list[Question]:
    out = []
    for name, figure in unique_names(rng, figures):
        for i, where in enumerate(RELATIONS):
            axis, sign = i // 2, 1 if i % 2 else -1
            there = [f for f in figures if where in relation(f, figure)]
            beyond = [f for f in figures if sign * (f.centre[axis] - figure.centre[axis]) > 0]
            # The only one on that side, and no other one reaches there.
            if len(there) == 1 and len(beyond) == 1:
                out.append(ask(rng, split, NEIGHBOUR_QUESTIONS, there[0].shape, name=name, relation=where))
    return out


def _ask_size(rng: np.random.Generator, split: Split, figures: Sequence[Figure]) -> list[Question]:
    counts = Counter(f.shape for f in figures)
    unique = [f for f in figures if counts[f.shape] == 1]
    out = []
    for one in unique:
        for other in unique:
            if one.look.large and not other.look.large:
                first, second = (one, other) if rng.random() < 0.5 else (other, one)
                size, answer = ("larger", one) if rng.random() < 0.5 else ("smaller", other)
                out.append(
                    ask(rng, split, SIZE_QUESTIONS, answer.shape, size=size, first=first.shape, second=second.shape)
                )
    return out


def _ask_exists(
    rng: np.random.Generator, split: Split, figures: Sequence[Figure], colours: Sequence[str]
) -> list[Question]:
    names = {f.name for f in figures}
    if rng.random() < 0.5:
        return [ask(rng, split, EXISTS_QUESTIONS, "yes", name=with_article(one_of(rng, sorted(names))))]
    return [ask(rng, split, EXISTS_QUESTIONS, "no", name=with_article(other_name(rng, names, colours)))]


def _ask_not_there(
    rng: np.random.Generator, split: Split, figures: Sequence[Figure], colours: Sequence[str]
) -> Question:
    """A question about a figure that is not there, in words that ask about others that are."""
    shapes = [shape for shape in SHAPES if shape not in {f.shape for f in figures}]
    tones = [colour for colour in colours if colour not in {f.colour for f in figures}]
    form = rng.random()
    if form < 0.3 and shapes:
        return ask_absent(rng, split, COLOUR_QUESTIONS, name=one_of(rng, shapes))
    if form < 0.5 and tones:
        return ask_absent(rng, split, SHAPE_QUESTIONS, name=one_of(rng, tones))
    name = other_name(rng, {f.name for f in figures}, colours)
    if name.split()[1] in shapes and rng.random() < 0.5:
        name = name.split()[1]
    wordings = BOX_QUESTIONS if form < 0.75 else one_of(rng, (SIDE_QUESTIONS, HEIGHT_QUESTIONS, CORNER_QUESTIONS))
    return ask_absent(rng, split, wordings, name=name)
