"""A canvas: what lies outside the picture is left out, and boxes are those of what is seen."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvlm.synthetic.drawing.canvas import Canvas
from pocketvlm.synthetic.drawing.fonts import FontFile, load_face
from pocketvlm.synthetic.drawing.lines import BLACK, print_line, set_line

FACE = load_face(FontFile(None, "Regular"), 24)
HEIGHT, WIDTH, AROUND = 60, 90, 80


def blank(more: int = 0) -> Canvas:
    return Canvas(np.full((HEIGHT + 2 * more, WIDTH + 2 * more, 3), 255, np.uint8))


@pytest.mark.parametrize(("x", "baseline"), [(10, 40), (-7, 40), (60, 40), (10, 5), (10, 66), (-7, 66), (10, 200)])
def test_print_over_an_edge_is_cut_off_there(x: int, baseline: int) -> None:
    """A larger picture shows the same around the same place."""
    line, cut, whole = set_line(FACE, "Agj"), blank(), blank(AROUND)
    cut.print(FACE, line, x, baseline, BLACK)
    whole.print(FACE, line, x + AROUND, min(baseline, 100) + AROUND, BLACK)
    if baseline <= 100:
        assert np.array_equal(cut.image, whole.image[AROUND : AROUND + HEIGHT, AROUND : AROUND + WIDTH])
    for box in cut.characters:
        assert 0 <= box.left < box.right <= WIDTH
        assert 0 <= box.top < box.bottom <= HEIGHT
    inside = []
    for box in whole.characters:
        wide = min(box.right, AROUND + WIDTH) - max(box.left, AROUND)
        high = min(box.bottom, AROUND + HEIGHT) - max(box.top, AROUND)
        if wide > 0 and high > 0 and 2 * wide * high > (box.right - box.left) * (box.bottom - box.top):
            inside.append(box.character)
    assert [box.character for box in cut.characters] == (inside if baseline <= 100 else [])


@pytest.mark.parametrize(("x", "baseline"), [(10, 40), (-7, 40), (60, 40), (10, 5), (10, 66), (10, 200), (-300, 40)])
def test_ink_over_an_edge_is_cut_off_there(x: int, baseline: int) -> None:
    line, cut = set_line(FACE, "Agj"), np.zeros((HEIGHT, WIDTH), np.uint8)
    around = 400
    whole = np.zeros((HEIGHT + 2 * around, WIDTH + 2 * around), np.uint8)
    boxes = print_line(cut, FACE, line, x, baseline)
    print_line(whole, FACE, line, x + around, baseline + around)
    assert np.array_equal(cut, whole[around : around + HEIGHT, around : around + WIDTH])
    assert bool(boxes) == bool(cut.any())
    for box in boxes:
        assert cut[int(box.top) : int(box.bottom), int(box.left) : int(box.right)].any()
