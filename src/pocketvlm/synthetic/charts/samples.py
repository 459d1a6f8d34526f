"""Bar, line and pie charts: the value of a category, which is the highest, how many, what colour, what is not there.

Where the values are printed, the answer is the print. Elsewhere a value is a round number that is read off the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from pocketvlm.synthetic.charts.drawing import paint_chart
from pocketvlm.synthetic.charts.parts import HELDOUT_LAYOUTS, MARKS, TRAIN_LAYOUTS, Axis, Chart, Side, Style
from pocketvlm.synthetic.drawing.canvas import Canvas, draw_paper
from pocketvlm.synthetic.drawing.figures import COLOURS as FIGURE_COLOURS
from pocketvlm.synthetic.drawing.fonts import families
from pocketvlm.synthetic.drawing.lines import Colour, draw_background, wear
from pocketvlm.synthetic.levels import THREE_SIZES, PrintedLevel, draw_size, no_room
from pocketvlm.synthetic.sample import Question, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import (
    TITLE_QUESTIONS,
    Wordings,
    ask,
    ask_absent,
    draw_names,
    integer_in,
    one_of,
)
from pocketvlm.synthetic.words.vocabulary import in_split

COLOURS: dict[str, Colour] = {**FIGURE_COLOURS, "grey": (130, 130, 130)}
#: Kind of chart, what its marks are called in questions, and how the highest and the lowest value look.
KIND_NAMES = {"bar": "bar", "point": "line", "slice": "pie"}
EXTREMES = {"bar": ("highest", "lowest"), "point": ("highest", "lowest"), "slice": ("largest", "smallest")}

VALUE_QUESTIONS = Wordings(
    (
        "What is the value of {name}?",
        "What value does {name} have?",
        "Read the value of {name}.",
        "How much is {name}?",
        "value of {name}?",
    ),
    heldout=("What's the value for {name}", "{name}: value?"),
)
EXTREME_QUESTIONS = Wordings(
    (
        "Which {mark} is the {extreme}?",
        "Which one is the {extreme}?",
        "What is the {extreme} {mark}?",
        "{extreme} {mark}?",
    ),
    heldout=("What's the {extreme} one", "Name the {extreme} {mark}."),
)
COUNT_QUESTIONS = Wordings(
    (
        "How many {mark}s are there?",
        "How many {mark}s does the chart have?",
        "What is the number of {mark}s?",
        "how many {mark}s",
    ),
    heldout=("Count the {mark}s.", "number of {mark}s?"),
)
COLOUR_QUESTIONS = Wordings(
    ("What colour is {name}?", "What is the colour of {name}?", "Which colour is {name}?", "colour of {name}?"),
    heldout=("What's the colour of {name}", "{name}: which colour?"),
)
LINE_QUESTIONS = Wordings(
    (
        "What colour is the line?",
        "What is the colour of the line?",
        "Which colour is the line?",
        "colour of the line?",
    ),
    heldout=("What's the colour of the line", "In which colour is the line drawn?"),
)
MARKS_QUESTIONS = Wordings(
    (
        "What colour are the {mark}s?",
        "What is the colour of the {mark}s?",
        "Which colour are the {mark}s?",
        "colour of the {mark}s?",
    ),
    heldout=("What's the colour of the {mark}s", "In which colour are the {mark}s drawn?"),
)
OWNER_QUESTIONS = Wordings(
    ("Which {mark} is {colour}?", "What is the {colour} {mark}?", "Which one is {colour}?", "{colour} {mark}?"),
    heldout=("What's the {colour} one", "Name the {colour} {mark}."),
)
MORE_QUESTIONS = Wordings(
    (
        "Is {first} more than {second}?",
        "Is the value of {first} more than {second}?",
        "Is {first} greater than {second}?",
        "{first} more than {second}?",
    ),
    heldout=("Does {first} have more than {second}?", "Is the value of {first} above that of {second}?"),
)
KIND_QUESTIONS = Wordings(
    ("What kind of chart is this?", "Which kind of chart is it?", "Is it a bar, line or pie chart?", "kind of chart?"),
    heldout=("What type of chart is shown?", "bar, line or pie chart?"),
)

STEPS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 100, 150, 200, 250, 500)
#: Values differ from the highest and the lowest by this share of the axis, and slices by this share of the circle.
GAP = 0.06
LEAST_SHARE = 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLevel(PrintedLevel):
    """How hard the charts are.

    Attributes:
        marks: fewest and most bars, points or slices.
        letters: longest name.
        ticks: fewest and most steps of the axis.
        printed: share of charts with printed values.
        titles: share of charts with a title.
        halves: whether unprinted values also stand between two ticks.
        questions: most questions but that about what is not there.
    """

    marks: tuple[int, int]
    letters: int
    ticks: tuple[int, int] = (3, 5)
    printed: float = 0.8
    titles: float = 0.3
    halves: bool = False
    questions: int = 4


CHART_LEVELS: tuple[ChartLevel, ...] = (
    ChartLevel(sizes=THREE_SIZES[0], marks=(3, 3), letters=5, font_pixels=(15, 19)),
    ChartLevel(
        sizes=THREE_SIZES[1],
        marks=(3, 5),
        letters=6,
        font_pixels=(12, 18),
        ticks=(3, 6),
        printed=0.65,
        titles=0.5,
        halves=True,
        questions=5,
        variety=0.5,
        wear=0.4,
    ),
    ChartLevel(
        sizes=THREE_SIZES[2],
        marks=(3, 6),
        letters=8,
        font_pixels=(13, 24),
        ticks=(3, 8),
        printed=0.5,
        titles=0.6,
        halves=True,
        questions=6,
        variety=0.7,
        wear=0.5,
    ),
)


def draw_chart(rng: np.random.Generator, level: ChartLevel, split: Split, task: str = "chart") -> Sample:
    """A picture of a chart of `level`; words, asked values, fonts and layout family are all from `split`."""
    height, width = draw_size(rng, level.sizes)
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    paper, ink = draw_paper(rng, level.variety)
    background = draw_background(rng, height, width, paper, level.variety * 0.5)
    for attempt in range(200):
        # What does not fit is drawn anew, in smaller print and, in the end, with the shortest names and no title.
        eased = level if attempt < 60 else replace(level, letters=3 if attempt > 120 else 4, titles=0.0)
        chart = draw_contents(rng, eased, split, layout, paper)
        canvas = _paint(rng, eased, split, chart, background, (paper, ink), shrink=attempt < 30)
        if canvas:
            break
    else:
        raise no_room("chart", level, height, width)
    image = np.ascontiguousarray(wear(rng, canvas.image, level.wear))
    return Sample(
        (image,),
        ask_about(rng, chart, split, level),
        task,
        (canvas.characters,),
        layout=layout,
        objects=(canvas.objects,),
    )


def _paint(
    rng: np.random.Generator,
    level: ChartLevel,
    split: Split,
    chart: Chart,
    background: np.ndarray,
    colours: tuple[Colour, Colour],
    shrink: bool,
) -> Canvas | None:
    """The chart in a random style, in smaller print where it must be; None where it does not fit."""
    height, width = background.shape[:2]
    left, top, right, bottom = (5 + int(rng.integers(0, side // 12 if shrink else 4)) for side in (width, height) * 2)
    family = one_of(rng, families(split))
    sides: tuple[Side, ...] = ("left", "below") if chart.layout == "ring" else ("right", "below")
    style = Style(
        font=family.bold if rng.random() < 0.15 else family.regular,
        title_font=family.bold,
        em=integer_in(rng, level.font_pixels),
        area=(left, top, width - right, height - bottom),
        paper=colours[0],
        ink=colours[1],
        title_scale=float(rng.uniform(1.0, 1.25)),
        title_align=one_of(rng, (0.0, 0.5, 0.5)),
        # Without printed values the grid is what the value is read by.
        grid=bool(rng.random() < (0.9 if not chart.printed else 0.3)) and chart.has_ticks,
        outlined=bool(rng.random() < 0.25),
        boxed=bool(rng.random() < 0.2),
        fullness=float(rng.uniform(0.45, 0.85)),
        thickness=float(rng.uniform(1.5, 3.5)) * max(1.0, height / 300),
        radius=float(rng.uniform(3.5, 5.5)) * max(1.0, height / 300),
        marker=int(rng.integers(3)),
        legend=one_of(rng, sides),
        legend_first=bool(rng.random() < 0.5),
        start=-90.0 if rng.random() < 0.5 else float(rng.uniform(0, 360)),
    )
    for em in (style.em, (style.em + level.font_pixels[0]) // 2, level.font_pixels[0]):
        if canvas := paint_chart(chart, replace(style, em=em), background):
            return canvas
    return None


def draw_contents(rng: np.random.Generator, level: ChartLevel, split: Split, layout: str, paper: Colour) -> Chart:
    """What a chart of `level` says; the value of at least one category belongs to `split` where values can be read."""
    count = integer_in(rng, level.marks)
    names = draw_names(rng, split, count, level.letters)
    title = " ".join(draw_names(rng, split, int(rng.integers(1, 3)), 7, names)) if rng.random() < level.titles else ""
    printed = bool(rng.random() < level.printed)
    colours = _draw_colours(
        rng, count, paper, single=layout == "line" or (layout in _ONE_COLOURED and one_of(rng, _HALF))
    )
    if MARKS[layout] == "slice":
        values, texts = _draw_shares(rng, count, split) if printed else (_draw_parts(rng, count), ("",) * count)
        return Chart(layout, names, values, texts, colours, printed, title=title)
    while True:
        axis = Axis(one_of(rng, STEPS), integer_in(rng, level.ticks))
        drawn = _draw_values(rng, level, split, axis, count, printed)
        if drawn:
            break
    has_ticks = not printed or bool(rng.random() < 0.5)
    sign = "%" if printed and axis.top <= 100 and rng.random() < 0.15 else ""
    texts = tuple(f"{value}{sign}" for value in drawn)
    return Chart(layout, names, drawn, texts, colours, printed, axis, has_ticks, title)


_ONE_COLOURED = ("bars", "lying bars", "stems")
_HALF = (True, False)


def _draw_colours(rng: np.random.Generator, count: int, paper: Colour, single: bool) -> tuple[tuple[str, Colour], ...]:
    """Named colours that stand out from `paper`: the same for all marks if `single`, else all different."""
    names = [n for n, colour in COLOURS.items() if sum(abs(a - b) for a, b in zip(colour, paper, strict=True)) >= 160]
    drawn = []
    for i in rng.permutation(len(names))[: 1 if single else count]:
        # Grey stays grey: all its channels move together.
        jitter = np.full(3, rng.integers(-14, 15)) if names[i] == "grey" else rng.integers(-14, 15, 3)
        r, g, b = (int(v) for v in np.clip(np.asarray(COLOURS[names[i]]) + jitter, 0, 255))
        drawn.append((names[i], (r, g, b)))
    return tuple(drawn * count if single else drawn)


@lru_cache(maxsize=1024)
def _own_values(split: Split, low: int, high: int, step: int = 1) -> tuple[int, ...]:
    """The multiples of `step` from `low` to `high` that belong to `split`."""
    return tuple(v for v in range(-(-low // step) * step, high + 1, step) if in_split(str(v), split))


def _draw_values(
    rng: np.random.Generator, level: ChartLevel, split: Split, axis: Axis, count: int, printed: bool
) -> tuple[int, ...] | None:
    """Values that fit `axis`, whose highest and lowest stand out; None where `split` has none."""
    step = axis.step // 2 if level.halves and axis.step % 2 == 0 else axis.step
    if printed:
        own = _own_values(split, max(1, axis.top // 10), axis.top)
        if len(own) < count:
            return None
    else:
        own = _own_values(split, step, axis.top, step)
        if not own:
            return None
    # Few round numbers are held out: the others of such a chart are not asked for.
    others = own if printed or split == "train" else tuple(range(step, axis.top + 1, step))
    for _ in range(12):
        values = [one_of(rng, own), *(one_of(rng, others) for _ in range(count - 1))]
        ordered = sorted(values)
        distinct = not printed or len(set(values)) == count
        if ordered[-1] < 0.5 * axis.top:
            continue
        if distinct and min(ordered[1] - ordered[0], ordered[-1] - ordered[-2]) >= GAP * axis.top:
            return tuple(values[i] for i in rng.permutation(count))
    return None


def _draw_parts(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """Shares of 100 with a clear largest and smallest one."""
    while True:
        cuts = np.sort(rng.choice(np.arange(1, 100), count - 1, replace=False))
        parts = sorted(int(v) for v in np.diff([0, *cuts, 100]))
        far = min(parts[1] - parts[0], parts[-1] - parts[-2]) >= 100 * GAP / (1 if count < 5 else 2)
        if far and parts[0] >= 100 * LEAST_SHARE / (1 if count < 5 else 1.6):
            return tuple(parts[i] for i in rng.permutation(count))


def _draw_shares(rng: np.random.Generator, count: int, split: Split) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Values of slices and how they are printed: per cent, or numbers that are in the same proportion."""
    while True:
        parts = _draw_parts(rng, count)
        if rng.random() < 0.5:
            # Few numbers up to 100 are held out: those that are not are not asked for.
            if (any if split == "heldout" else all)(in_split(str(part), split) for part in parts):
                return parts, tuple(f"{part}%" for part in parts)
            continue
        # Each part becomes the nearest number of the split, which hardly moves the slices' ends.
        factor = float(np.exp(rng.uniform(np.log(0.8), np.log(9))))
        values = tuple(_nearest(split, part * factor) for part in parts)
        if len(set(values)) == count and max(abs(v / factor - p) for v, p in zip(values, parts, strict=True)) < 2:
            return values, tuple(str(value) for value in values)


def _nearest(split: Split, value: float) -> int:
    own = _own_values(split, 1, 999)
    return own[int(np.abs(np.asarray(own) - value).argmin())]


def ask_about(rng: np.random.Generator, chart: Chart, split: Split, level: ChartLevel) -> tuple[Question, ...]:
    """Questions on `chart`, first a value or an extreme. Values of the other split are not asked for."""
    mark, names, count = chart.mark, chart.names, len(chart.names)
    order = [int(i) for i in rng.permutation(count)]
    is_readable = chart.printed or chart.axis is not None
    is_colourful = len({name for name, _ in chart.colours}) == count
    first = [
        ask(rng, split, VALUE_QUESTIONS, chart.texts[i], "text" if chart.printed else "number", name=names[i])
        for i in order
        if is_readable and in_split(chart.texts[i], split)
    ][:2]
    by_value = sorted(order, key=lambda i: chart.values[i])
    for i, extreme in zip((by_value[-1], by_value[0]), EXTREMES[mark], strict=True):
        first.append(ask(rng, split, EXTREME_QUESTIONS, names[i], mark=mark, extreme=extreme))

    more = [ask(rng, split, COUNT_QUESTIONS, str(count), mark=mark)]
    if chart.layout in TRAIN_LAYOUTS:  # what stems and rings are called is a matter of taste
        more.append(ask(rng, split, KIND_QUESTIONS, KIND_NAMES[mark]))
    if is_colourful:
        i, j = order[0], order[-1]
        more.append(ask(rng, split, COLOUR_QUESTIONS, chart.colours[i][0], name=names[i]))
        more.append(ask(rng, split, OWNER_QUESTIONS, names[j], mark=mark, colour=chart.colours[j][0]))
    else:
        wordings = LINE_QUESTIONS if chart.layout == "line" else MARKS_QUESTIONS
        more.append(ask(rng, split, wordings, chart.colours[0][0], mark=mark))
    if chart.title:
        more.append(ask(rng, split, TITLE_QUESTIONS, chart.title))
    more += _ask_more(rng, split, chart, order)
    lead = first.pop(0 if rng.random() < 0.65 else int(rng.integers(len(first))))
    rest = [*first, *more]
    kept = [lead, *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    if rng.random() < 0.3:
        (name,) = draw_names(rng, split, 1, level.letters, taken=(*names, *chart.title.split()))
        wordings = VALUE_QUESTIONS if is_readable and (not is_colourful or rng.random() < 0.7) else COLOUR_QUESTIONS
        kept.append(ask_absent(rng, split, wordings, name=name))
    return tuple(kept)


def _ask_more(rng: np.random.Generator, split: Split, chart: Chart, order: Sequence[int]) -> list[Question]:
    """Whether one is more than another, where the eye can tell."""
    for i in order:
        for j in order:
            clear = GAP * (chart.axis.top if chart.axis else chart.total)
            if i != j and abs(chart.values[i] - chart.values[j]) >= clear:
                answer = "yes" if chart.values[i] > chart.values[j] else "no"
                return [ask(rng, split, MORE_QUESTIONS, answer, first=chart.names[i], second=chart.names[j])]
    return []
