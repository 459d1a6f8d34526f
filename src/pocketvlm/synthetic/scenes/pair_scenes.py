"""Two or three pictures that belong together: how far they differ at each level, and their drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pocketvlm.synthetic.drawing.figures import (
    COLOURS,
    SHAPES,
    Figure,
    Look,
    colours_on,
    draw_ink,
    draw_look,
)
from pocketvlm.synthetic.drawing.fonts import families
from pocketvlm.synthetic.sample import Split, choose_layout
from pocketvlm.synthetic.scenes.arrangements import HELDOUT_LAYOUTS, TRAIN_LAYOUTS, TRIES, no_room
from pocketvlm.synthetic.scenes.cards import (
    Card,
    Ground,
    draw_form,
    place_at,
    place_freely,
    place_on,
    set_again,
    set_print,
)
from pocketvlm.synthetic.words.values import draw_value, integer_in, one_of

#: What may differ, as it is answered.
#: A figure that has moved has done so by this many pixels and this share of the free area's shorter side.
MIN_MOVE, MIN_MOVE_SHARE = 30, 0.3
CHANGES = ("the colour", "the shape", "the size", "the place", "the number", "the word")


NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class PairLevel:
    """How hard the pictures are.

    Attributes:
        sizes: (height, width) choices of each picture, in pixels; all of a sample are of the same size.
        pictures: fewest and most pictures.
        figures: most figures a picture.
        small, large: shortest and longest longer side of the two classes of size, in pixels.
        font_pixels: smallest and largest size of the letters' em, in pixels.
        letters: longest word.
        questions: most questions but that about what is not there.
        variety: share of grounds that are not white; some of these have a texture.
        wear: strength of blur and noise, 0 to 1.
    """

    sizes: tuple[tuple[int, int], ...]
    pictures: tuple[int, int]
    figures: int
    small: tuple[int, int]
    large: tuple[int, int]
    font_pixels: tuple[int, int]
    letters: int
    questions: int = 4
    variety: float = 0.4
    wear: float = 0.2


PAIR_LEVELS: tuple[PairLevel, ...] = (
    PairLevel(
        sizes=((112, 112), (112, 112), (112, 168), (168, 168)),
        pictures=(2, 2),
        figures=3,
        small=(28, 34),
        large=(50, 60),
        font_pixels=(17, 30),
        letters=6,
    ),
    PairLevel(
        sizes=((112, 168), (168, 168), (168, 224), (224, 224)),
        pictures=(2, 3),
        figures=4,
        small=(26, 34),
        large=(50, 66),
        font_pixels=(14, 32),
        letters=7,
        variety=0.6,
        wear=0.4,
    ),
    PairLevel(
        sizes=((224, 224), (224, 280), (280, 280)),
        pictures=(2, 3),
        figures=6,
        small=(26, 36),
        large=(54, 80),
        font_pixels=(13, 36),
        letters=9,
        questions=5,
        variety=0.8,
        wear=0.6,
    ),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """The cards of a sample; `change` is what differs where two are otherwise the same, else empty."""

    cards: tuple[Card, ...]
    grounds: tuple[Ground, ...]
    change: str = ""


class Drawer:
    """Draws the scenes of one sample."""

    def __init__(self, rng: np.random.Generator, level: PairLevel, split: Split, form: str) -> None:
        self.rng, self.level, self.split, self.form = rng, level, split, form
        self.height, self.width = one_of(rng, level.sizes)

    def scene(self) -> Scene:
        kind = self.rng.random()
        if kind < 0.4:
            return self._differing()
        count = integer_in(self.rng, self.level.pictures)
        grounds = tuple(self._ground() for _ in range(count))
        if kind < 0.75:
            return Scene(self._all_printed(grounds, numbers=kind >= 0.65), grounds)
        if kind < 0.88:
            return Scene(self._counted(grounds), grounds)
        # One card of several may say a word instead.
        odd = int(self.rng.integers(count)) if self.rng.random() < 0.25 else -1
        cards = (
            self._printed(ground, numbers=False) if i == odd else self._figured(ground)
            for i, ground in enumerate(grounds)
        )
        return Scene(tuple(cards), grounds)

    def _ground(self) -> Ground:
        return draw_form(self.rng, self.form, self.height, self.width, self.level.variety)

    def _look(self, ground: Ground, shape: str) -> Look:
        is_large = self.rng.random() < 0.35
        size = self.level.large if is_large else self.level.small
        return draw_look(self.rng, shape, one_of(self.rng, colours_on(ground.paper)), size, large=bool(is_large))

    def _place(self, looks: Sequence[Look], ground: Ground) -> tuple[Figure, ...] | None:
        layout = choose_layout(self.rng, self.split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
        return place_on(self.rng, layout, looks, ground)

    def _figured(self, ground: Ground) -> Card:
        """A card with a few figures, most often one or two."""
        count = int(self.rng.integers(1, self.level.figures + 1, 2).min())
        return Card(self._fitting(SHAPES, count, ground))

    def _fitting(self, shapes: Sequence[str], count: int, ground: Ground) -> tuple[Figure, ...]:
        """`count` figures of any of `shapes`; fewer where so many do not fit."""
        for attempt in range(TRIES):
            looks = [self._look(ground, one_of(self.rng, shapes)) for _ in range(max(1, count - attempt // 12))]
            figures = self._place(looks, ground)
            if figures:
                return figures
        raise no_room(self.height, self.width)

    def _counted(self, grounds: Sequence[Ground]) -> tuple[Card, ...]:
        """Cards with figures of one shape, or of two: how many there are is what matters."""
        shapes = [SHAPES[i] for i in self.rng.permutation(len(SHAPES))[: one_of(self.rng, (1, 1, 2))]]
        most = self.level.figures + 1
        return tuple(Card(self._fitting(shapes, integer_in(self.rng, (1, most)), ground)) for ground in grounds)

    def _all_printed(self, grounds: Sequence[Ground], *, numbers: bool) -> tuple[Card, ...]:
        """Cards with a word each, or a number each, all different."""
        while True:
            cards = tuple(self._printed(ground, numbers=numbers) for ground in grounds)
            if len({card.text for card in cards}) == len(cards):
                return cards

    def _printed(self, ground: Ground, *, numbers: bool) -> Card:
        """A card with one word, or one number."""
        for _ in range(TRIES):
            family = one_of(self.rng, families(self.split))
            file = family.bold if self.rng.random() < 0.3 else family.regular
            printed = set_print(self.rng, self._text(numbers=numbers), file, self.level.font_pixels, ground)
            if printed:
                return Card(print=printed)
        raise no_room(self.height, self.width)

    def _text(self, *, numbers: bool) -> str:
        while True:
            text = draw_value(self.rng, "count" if numbers else "word", self.split, self.level.letters)
            # "Which picture shows a star?" must not mean the word.
            if text.lower() not in SHAPES and text.lower() not in COLOURS:
                return text

    def _differing(self) -> Scene:
        """Two cards on the same ground that differ in one thing, or in nothing."""
        change = NOTHING if self.rng.random() < 0.25 else one_of(self.rng, CHANGES)
        for _ in range(TRIES):
            ground = self._ground()
            printed = change == "the word" or (change == NOTHING and self.rng.random() < 0.2)
            first = self._printed(ground, numbers=False) if printed else self._figured(ground)
            second = self._changed(first, change, ground)
            if second:
                pair = (first, second) if self.rng.random() < 0.5 else (second, first)
                return Scene(pair, (ground, ground), change)
        raise no_room(self.height, self.width)

    def _changed(self, card: Card, change: str, ground: Ground) -> Card | None:
        """`card` but for `change`; None where there is no room for that."""
        if change == NOTHING:
            return card
        if change == "the word":
            assert card.print
            text = self._text(numbers=False)
            other = set_again(text, card.print, ground) if text != card.text else None
            return Card(print=other) if other else None
        chosen = int(self.rng.integers(len(card.figures)))
        figure, rest = card.figures[chosen], card.figures[:chosen] + card.figures[chosen + 1 :]
        if change == "the number":
            more = place_freely(self.rng, figure.look, card.figures, ground)
            return Card((*card.figures, more)) if more else None
        if change == "the place":
            moved = place_freely(self.rng, figure.look, rest, ground)
            least = max(MIN_MOVE, MIN_MOVE_SHARE * min(ground.size))
            far = moved and np.hypot(*np.subtract(moved.centre, figure.centre)) >= least
            return Card((*rest, moved)) if moved and far else None
        look = self._other_look(figure.look, change, ground)
        other_figure = place_at(look, figure.centre, rest, ground)
        return Card((*rest, other_figure)) if other_figure else None

    def _other_look(self, look: Look, change: str, ground: Ground) -> Look:
        if change == "the colour":
            colour = one_of(self.rng, [c for c in colours_on(ground.paper) if c != look.colour])
            return replace(look, colour=colour, ink=draw_ink(self.rng, colour))
        if change == "the shape":
            return replace(look, shape=one_of(self.rng, [s for s in SHAPES if s != look.shape]))
        size = self.level.small if look.large else self.level.large
        return replace(look, pixels=integer_in(self.rng, size), large=not look.large)
