"""Fonts: disjoint families, full alphabets, glyphs as Pillow draws them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.synthetic.drawing.fonts import ASCII, BUILT_IN, FontFile, families, load_face, split_of

BUILT_IN_FILE = FontFile(None, "Regular")


def heldout_families():
    try:
        return families("heldout")
    except MissingExtraError:
        pytest.skip("no held-out font is installed")


def test_the_built_in_family_is_always_there():
    assert BUILT_IN in {family.name for family in families("train")}


def test_families_of_the_splits_are_disjoint():
    heldout = {family.name for family in heldout_families()}
    assert not heldout & {family.name for family in families("train")}
    assert all(split_of(name) == "heldout" for name in heldout)


@pytest.mark.parametrize(
    ("name", "split"),
    [("DejaVu Sans", "train"), ("Liberation Serif", "train"), ("Caladea", "heldout"), ("Lato", "heldout")],
)
def test_named_families_have_a_fixed_split(name, split):
    assert split_of(name) == split


def test_every_family_draws_every_printable_character():
    for family in families("train"):
        face = load_face(family.regular, 20)
        for character in ASCII:
            assert face.glyph(character).mask.any(), (family.name, character)


def test_faces_are_kept():
    assert load_face(BUILT_IN_FILE, 21) is load_face(BUILT_IN_FILE, 21)


@pytest.mark.parametrize("pixels", [12, 24, 61])
def test_a_glyph_equals_what_pillow_draws(pixels):
    face = load_face(BUILT_IN_FILE, pixels)
    for character in "agjQW$.|":
        canvas = Image.new("L", (160, 160))
        ImageDraw.Draw(canvas).text((40, 90), character, fill=255, font=face.font, anchor="ls")
        glyph = face.glyph(character)
        height, width = glyph.mask.shape
        ours = np.zeros((160, 160), np.uint8)
        ours[90 + glyph.top : 90 + glyph.top + height, 40 + glyph.left : 40 + glyph.left + width] = glyph.mask
        assert np.array_equal(ours, np.asarray(canvas))


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="validation"):
        families("validation")
