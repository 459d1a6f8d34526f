"""A page whose small print lies in one known slice, for tests of what looks at pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketvlm.synthetic.drawing.fonts import families, load_face
from pocketvlm.synthetic.drawing.lines import print_line, set_line

WORDS = "the small print on a page tells what the large print leaves out of it"


def printed_page(height: int, width: int, *where: tuple[int, int], em: int = 10, side: int = 112) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], white but for black print of `em` pixels in the slices (row, column) `where`."""
    coverage = np.zeros((height, width), np.uint8)
    face = load_face(families("train")[0].regular, em)
    words = WORDS
    while (line := set_line(face, words)).width > side - 8:
        words = words[:-1].rstrip()
    for row, column in where:
        for baseline in range(row * side + em + 2, min((row + 1) * side, height) - em // 2, round(1.3 * em)):
            print_line(coverage, face, line, column * side + 4, baseline)
    return np.repeat(255 - coverage[..., None], 3, axis=2)
