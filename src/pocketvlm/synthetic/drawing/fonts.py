"""Which fonts there are, and their glyphs as arrays.

Fonts come from three places: Pillow's built-in Aileron (always there), the font packages of the extra `synthetic`
(found through their entry points), and the TrueType and OpenType files of the system. What is installed decides what
can be drawn, so a picture is reproducible on machines with the same fonts; the split of a family never depends on it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pocketvlm.errors import MissingExtraError
from pocketvlm.synthetic.sample import Split, check_split

BUILT_IN = "Aileron"
SYSTEM_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))

# Held out by name. Carlito is drawn after Lato, and the Courier Primes after each other: they go together.
HELD_OUT = frozenset(
    {"Caladea", "Lato", "Carlito", "Manrope", "Courier Prime", "Courier Prime Code", "Courier Prime Sans"}
)
# Trained on by name, and first in this order: the first level of the curriculum uses two families, and these are the
# plain ones. On a machine without system fonts the built-in font and Roboto take their place.
FIRST = ("DejaVu Sans", "Liberation Sans", BUILT_IN, "Roboto", "DejaVu Sans Mono", "Liberation Serif")
# Nimbus Sans has the shapes of Liberation Sans, so holding it out would prove nothing.
TRAIN = frozenset({*FIRST, "DejaVu Serif", "Liberation Mono", "Source Sans Pro", "Source Serif Pro", "Nimbus Sans"})

ASCII = "".join(chr(i) for i in range(33, 127))
# Symbol fonts put pictures where the letters are; Z003 is handwriting; hairlines vanish at 14 px; variable files repeat
# the static ones.
_UNFIT = re.compile(
    r"dingbat|symbol|D050000L|Z003|math|emoji|thin\b|hairline|extra ?light|ultra ?light|variable", re.IGNORECASE
)
# Noto has one file a script; only the Latin ones are of use here.
_NOTO_LATIN = re.compile(r"Noto(Sans|Serif)(Display|Mono)?-")
_STYLE_WORDS = re.compile(
    r"\s+(thin|hairline|extralight|light|lt|book|regular|medium|semi ?bold|semibold|demi|bold|extra ?bold|heavy|black"
    r"|retina|italic|oblique|condensed|cond|narrow)\b",
    re.I,
)


@dataclass(frozen=True, slots=True)
class FontFile:
    """One style of a family. `path` is None for Pillow's built-in font."""

    path: str | None
    style: str

    @property
    def is_bold(self) -> bool:
        return bool(re.search("bold|black|heavy|demi", self.style, re.I))


@dataclass(frozen=True, slots=True)
class Family:
    """A family of fonts: all widths, weights and slants under one name."""

    name: str
    files: tuple[FontFile, ...]

    @property
    def regular(self) -> FontFile:
        """The plainest file: Regular, Roman, Book or Medium, else the first."""
        for wanted in ("regular", "roman", "book", "medium"):
            for file in self.files:
                if file.style.lower() == wanted:
                    return file
        return self.files[0]

    @property
    def bold(self) -> FontFile:
        """The file called Bold, else any bold one, else the plainest."""
        exact = [f for f in self.files if f.style.lower() in ("bold", "demi")]
        return next(iter(exact + [f for f in self.files if f.is_bold]), self.regular)


class Glyph(NamedTuple):
    """Coverage of one character, cut to its ink.

    Attributes:
        mask: uint8, [height, width]; empty for a space.
        left, top: of the mask, relative to the pen on the baseline, in pixels (y grows downwards).
        advance: to the next pen position, in pixels.
    """

    mask: NDArray[np.uint8]
    left: int
    top: int
    advance: float


class Face:
    """A font file at one size, with its glyphs and kerning kept."""

    def __init__(self, font: ImageFont.FreeTypeFont) -> None:
        self.font = font
        self.ascent, self.descent = font.getmetrics()
        self._glyphs: dict[str, Glyph] = {}
        self._kerning: dict[str, float] = {}

    def glyph(self, character: str) -> Glyph:
        if (known := self._glyphs.get(character)) is None:
            known = self._glyphs[character] = self._draw(character)
        return known

    def kerning(self, pair: str) -> float:
        """Pixels to add between the two characters of `pair`."""
        if (known := self._kerning.get(pair)) is None:
            both = self.font.getlength(pair)
            known = self._kerning[pair] = both - self.glyph(pair[0]).advance - self.glyph(pair[1]).advance
        return known

    def _draw(self, character: str) -> Glyph:
        left, top, right, bottom = self.font.getbbox(character, anchor="ls")
        x, y = int(left) - 1, int(top) - 1
        canvas = Image.new("L", (int(right) - x + 2, int(bottom) - y + 2))
        ImageDraw.Draw(canvas).text((-x, -y), character, fill=255, font=self.font, anchor="ls")
        mask = np.asarray(canvas)
        advance = self.font.getlength(character)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return Glyph(np.zeros((0, 0), np.uint8), 0, 0, advance)
        ink = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        return Glyph(ink, x + int(columns[0]), y + int(rows[0]), advance)


@lru_cache(maxsize=768)
def load_face(file: FontFile, size: int) -> Face:
    """The face of `file` at `size` pixels an em; the most recent ones stay in memory (about 0.1 MB each)."""
    if file.path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return Face(font)
    # Basic layout: the same pixels whether or not this Pillow was built with a text shaper.
    return Face(ImageFont.truetype(file.path, size, layout_engine=ImageFont.Layout.BASIC))


def split_of(name: str) -> Split:
    """The split of a family: by the two lists above, else one family in ten is held out by a hash of its name."""
    if name in HELD_OUT:
        return "heldout"
    if name in TRAIN:
        return "train"
    return "heldout" if hashlib.blake2b(name.lower().encode()).digest()[0] % 10 == 0 else "train"


@lru_cache(maxsize=2)
def families(split: Split) -> tuple[Family, ...]:
    """All usable families of `split`, plain ones first, then by name; `MissingExtraError` where there is none."""
    check_split(split)
    found = tuple(family for family in _all_families() if split_of(family.name) == split)
    if not found:  # only held-out ones can be lacking: the built-in font is a training font
        raise MissingExtraError("a held-out font family such as font-caladea", "synthetic")
    return found


@lru_cache(maxsize=1)
def _all_families() -> tuple[Family, ...]:
    styles: dict[str, dict[str, FontFile]] = {BUILT_IN: {"Regular": FontFile(None, "Regular")}}
    for path in (*_package_files(), *_system_files()):
        try:
            font = ImageFont.truetype(path, 16, layout_engine=ImageFont.Layout.BASIC)
        except OSError:
            continue
        name, style = (part or "" for part in font.getname())
        if _UNFIT.search(f"{Path(path).stem} {name} {style}") or not _draws_ascii(font):
            continue
        # Some files call every style "Light" and only their file names differ.
        stem = Path(path).stem.lower()
        style = " ".join(
            [style, *(w for w in ("Bold", "Italic") if w.lower() in stem and w.lower() not in style.lower())]
        )
        family = _STYLE_WORDS.sub("", name).strip()
        # The width is part of some names ("Liberation Sans Narrow") and of some styles ("Condensed Bold").
        style = f"{name[len(family) :]} {style}".strip() or "Regular"
        styles.setdefault(family, {}).setdefault(style, FontFile(path, style))
    order = {name: i for i, name in enumerate(FIRST)}
    names = sorted(styles, key=lambda name: (order.get(name, len(order)), name))
    return tuple(Family(name, tuple(styles[name][style] for style in sorted(styles[name]))) for name in names)


def _package_files() -> Iterator[str]:
    """Files of installed font packages, which announce them as mappings of names to paths."""
    for group in ("fonts_ttf", "fonts_otf"):
        for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
            files = entry.load()
            yield from (str(files[name]) for name in sorted(files))


def _system_files() -> Iterator[str]:
    for folder in SYSTEM_FOLDERS:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in (".ttf", ".otf"):
                continue
            if path.name.startswith("Noto") and not _NOTO_LATIN.match(path.name):
                continue
            yield str(path)


def _draws_ascii(font: ImageFont.FreeTypeFont) -> bool:
    """Whether each printable ASCII character has ink of its own, unlike the font's sign for a missing character."""
    missing = _pixels(font, "\U0010fffe")
    return all(pixels != missing and any(pixels[1]) for pixels in (_pixels(font, c) for c in ASCII))


def _pixels(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
