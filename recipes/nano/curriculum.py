"""What nano sees while it learns: the tower first, at both rates from the first step on, from one word to pages full of
print; then the decoder, which reads aloud, then looks up, then does all that is asked of it.

Full difficulty from the first step learns nothing: each stage starts where the one before it can already read, and a
stage ends on the loss, never on the clock.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from pocketvlm.synthetic import LEVELS, REGISTRY
from pocketvlm.training.settings import PARTS
from recipes.nano.collage import CollageLevel
from recipes.nano.lookup import LookupLevel
from recipes.nano.views import Rates


class Share(NamedTuple):
    """`weight` of the samples are of `task` at `level` (a number, or a level of one's own)."""

    task: str
    level: object
    weight: float


UNCOMPRESSED, COMPRESSED = Rates(all_4x=1.0), Rates(all_4x=0.0, all_16x=1.0)
MOSTLY_4X = Rates(all_4x=0.7, all_16x=0.15)  # the rate that nano answers at, unless it is asked for another one
HYBRID = Rates(all_4x=0.5, all_16x=0.25)  # and a quarter view by view
SEES, COMPRESSION = ("tower", "compression", "merger"), ("compression", "merger")


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum.

    Attributes:
        tasks: what the samples of a step are drawn from.
        patches: samples are added to a step until they have this many patches, in each process.
        mark: the stage ends when the moving average of the loss falls under this; 0 never ends.
        rates: how views are compressed.
        learns: parts of the model, by the names of `pocketvlm tune --tune`.
        steps: the stage ends after this many steps; 0 is no limit.
        alone: in every n-th step the tower learns alone, from what its cells show, and the decoder in the others; 1 is
            in all of them, 0 in none.
        between: what the tower sees when it learns alone; `tasks` when empty.
        between_patches: of those steps; `patches` when 0. Reading learns from as many pictures a step as fit, since its
            gradient is mostly noise (docs/log.md).
        cells: weight of the tower's dense losses.
        questions: most questions asked about a sample.
        as_is: share of the small pictures that are not enlarged to a whole view, as inference would: reading is learnt
            from prints, and a strip as it is costs an eighth of one enlarged.
        brief: share of the samples whose questions behind the first one stand without the chat template around them:
            a sixth fewer tokens.
        measured: the shares follow what the suite says is weakest, see `mix.py`.
        rate: what the learning rate of the run is multiplied by.
        alone_rate: the same in the steps of the tower alone; `rate` when 0.
        tower_rests: the tower learns in its own steps only: those of the decoder cost a third less then.
    """

    name: str
    tasks: tuple[Share, ...]
    patches: int
    mark: float = 0.0
    rates: Rates = UNCOMPRESSED
    learns: tuple[str, ...] = PARTS
    steps: int = 0
    alone: int = 0
    between: tuple[Share, ...] = ()
    between_patches: int = 0
    cells: float = 0.5
    questions: int = 4
    as_is: float = 0.4
    brief: float = 0.0
    measured: bool = False
    rate: float = 1.0
    alone_rate: float = 0.0
    tower_rests: bool = False

    def has_language(self, step: int) -> bool:
        """Whether the decoder takes part in this step."""
        return self.alone == 0 or step % self.alone != self.alone - 1

    def rate_at(self, step: int) -> float:
        """What the learning rate of the run is multiplied by in this step."""
        return self.rate if self.has_language(step) else self.alone_rate or self.rate

    def patches_at(self, step: int) -> int:
        """How many patches this step has at least, in each process."""
        return self.patches if self.has_language(step) or not self.between_patches else self.between_patches

    def tasks_at(self, step: int) -> tuple[Share, ...]:
        """What the samples of this step are drawn from."""
        return self.tasks if self.has_language(step) or not self.between else self.between


def _much_asked(task: str, **changes: int) -> object:
    """The first level of a kind of picture, about which as much is asked as there is: drawing and seeing it costs more
    than another question."""
    return dataclasses.replace(REGISTRY[task].levels[0], questions=9, **changes)


# One word, number or phrase anywhere on a page: what people try first.
ONE_LINE = dataclasses.replace(LEVELS[3], lines=(1, 1))
# The same print on a canvas that is little larger: a quarter of the patches, so four times the reading for the money.
SNIPPET = dataclasses.replace(LEVELS[3], lines=(1, 2), sizes=((56, 224), (56, 168), (112, 112), (112, 224), (112, 168)))

# As much print as a view holds: large, of all sizes, and for texts that the decoder reads aloud.
LARGE, PRINT, DENSE = (CollageLevel(font_pixels=pixels) for pixels in ((16, 56), (14, 44), (11, 48)))
SIZES = CollageLevel(font_pixels=(14, 40), variety=0.3, wear=0.2, degrees=0, shrunk=0.1)
FEW_LINES = CollageLevel(font_pixels=(12, 44), lines=4)
PLAIN = CollageLevel(font_pixels=(16, 30), variety=0.1, wear=0.1, degrees=0, shrunk=0)

STRIPS = (Share("collage", PLAIN, 0.5), Share("words", 1, 0.5))
ANY_SIZE = (Share("collage", SIZES, 0.7), Share("words", SNIPPET, 0.2), Share("words", ONE_LINE, 0.1))
# Where things are is learnt late: two more boxes are asked for, in a picture that is looked at anyway.
SHAPES, SCREENS = _much_asked("shapes", boxes=2), _much_asked("screen", boxes=2)

ONE_PICTURE = (
    Share("lookup", LookupLevel(), 0.10),
    Share("words", ONE_LINE, 0.14),
    Share("words", SNIPPET, 0.16),
    Share("words", 3, 0.05),
    Share("words", 4, 0.01),
    Share("words", 5, 0.02),
    Share("receipt", 0, 0.05),
    Share("receipt", 1, 0.02),
    Share("invoice", _much_asked("invoice"), 0.07),
    Share("table", _much_asked("table"), 0.11),
    Share("table", 1, 0.02),
    Share("form", _much_asked("form"), 0.08),
    Share("chart", _much_asked("chart"), 0.12),
    Share("chart", 1, 0.02),
    Share("shapes", SHAPES, 0.18),
    Share("shapes", 1, 0.02),
    Share("screen", SCREENS, 0.12),
    Share("paragraph", 0, 0.04),
    Share("page", 0, 0.04),
    Share("page", 1, 0.03),
    Share("page", 3, 0.02),  # nine slices of one view each, as the pages of the suite
)
SEVERAL_PICTURES = (
    *ONE_PICTURE,
    Share("pair", _much_asked("pair"), 0.06),
    Share("pair", 1, 0.02),
    Share("clip", _much_asked("clip"), 0.07),
)
# For the tower alone: whatever its cells can be asked about, as densely as it comes, and mostly as large as the pages
# of the suite have it: one to three characters a cell at 4x.
CELLS = (
    Share("collage", PRINT, 0.36),
    Share("collage", DENSE, 0.12),
    Share("collage", LARGE, 0.12),
    Share("words", SNIPPET, 0.10),
    Share("words", ONE_LINE, 0.08),
    Share("paragraph", 1, 0.03),
    Share("receipt", 0, 0.05),
    Share("table", 0, 0.04),
    Share("form", 0, 0.03),
    Share("shapes", 0, 0.03),
    Share("screen", 0, 0.03),
    Share("chart", 0, 0.02),
)

# Where the decoder begins: short texts alone, of which the tower knows most by then.
FIRST_WORDS = (Share("words", 1, 0.60), Share("words", 0, 0.15), Share("words", SNIPPET, 0.25))
# Where it learns to read aloud: whole texts, then lines by their number, from large print to small.
ALOUD = (
    Share("words", SNIPPET, 0.25),
    Share("words", ONE_LINE, 0.10),
    Share("words", 3, 0.20),
    Share("words", 1, 0.05),
    Share("collage", FEW_LINES, 0.20),
    Share("paragraph", 0, 0.12),
    Share("paragraph", 1, 0.08),
)
# Where it learns to look up a value by its name: two or three pairs, then a list or a table of them, then receipts.
FIRST_PAIRS = (
    Share("lookup", LookupLevel(pairs=(1, 3), font_pixels=(14, 34), absent=0.1), 0.60),
    Share("words", SNIPPET, 0.20),
    Share("collage", FEW_LINES, 0.20),
)
LOOKED_UP = (
    Share("lookup", LookupLevel(), 0.32),
    Share("form", _much_asked("form"), 0.13),
    Share("table", _much_asked("table"), 0.14),
    Share("receipt", 0, 0.12),
    Share("invoice", _much_asked("invoice"), 0.08),
    Share("chart", _much_asked("chart"), 0.04),
    Share("page", 0, 0.03),
    Share("screen", SCREENS, 0.04),
    Share("words", SNIPPET, 0.06),
    Share("paragraph", 0, 0.04),
)

# Large steps while everything is still to be found, small ones where characters are told apart (docs/log.md).
FINE, DECODER = 0.2, 0.2

# Where the decoder learns; the tower does in steps of its own only.
_with_decoder = partial(
    Stage,
    rates=MOSTLY_4X,
    alone=4,
    between=CELLS,
    between_patches=8192,
    brief=0.7,
    rate=DECODER,
    alone_rate=FINE,
    tower_rests=True,
)

CURRICULUM: tuple[Stage, ...] = (
    Stage("tower", (Share("words", 0, 1.0),), 1152, 0.60, HYBRID, SEES, alone=1, cells=1.0, as_is=1.0),
    Stage("strips", STRIPS, 1536, 1.60, HYBRID, SEES, alone=1, cells=1.0, as_is=1.0),
    Stage("sizes", ANY_SIZE, 2048, 1.40, HYBRID, SEES, alone=1, cells=1.0, as_is=0.8, rate=0.5),
    Stage("print", CELLS, 8192, 0.40, MOSTLY_4X, SEES, alone=1, cells=1.0, rate=0.5),
    _with_decoder("first words", FIRST_WORDS, 1024, 1.20, as_is=1.0),
    _with_decoder("reading aloud", ALOUD, 3072, 1.60),
    _with_decoder("first pairs", FIRST_PAIRS, 3072, 1.40, questions=6),
    _with_decoder("looking up", LOOKED_UP, 3072, 1.00, questions=6),
    _with_decoder("one picture", ONE_PICTURE, 3072, 0.70, questions=10, measured=True),
    _with_decoder("several pictures", SEVERAL_PICTURES, 3072, 0, questions=10, measured=True),
)


def scaled(stages: tuple[Stage, ...], factor: float) -> tuple[Stage, ...]:
    """The same stages with larger steps, for devices that want more at once."""
    return tuple(
        dataclasses.replace(
            stage, patches=round(stage.patches * factor), between_patches=round(stage.between_patches * factor)
        )
        for stage in stages
    )


def stage_number(name: str) -> int:
    """Place of a stage in the curriculum, by its name."""
    return [stage.name for stage in CURRICULUM].index(name)
