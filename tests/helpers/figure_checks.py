"""Reading figures back from the pixels of a clean picture (white ground, no wear): shared by the tests of figures."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pocketvlm.synthetic.drawing.figures import COLOURS


def ink_of(image):
    """Where a clean picture has a figure: clearly not white and not grey."""
    spread = image.max(axis=2).astype(int) - image.min(axis=2)
    return spread > 50


def blobs(image):
    """(box, name of the nearest colour) of each connected patch of coloured ink."""
    ink = Image.fromarray(ink_of(image).astype(np.uint8) * 255).copy()  # one that may be written
    out = []
    while True:
        left = np.argwhere(np.asarray(ink) == 255)
        if not len(left):
            return out
        y, x = (int(v) for v in left[0])
        ImageDraw.floodfill(ink, (x, y), 100)
        rows, columns = np.nonzero(np.asarray(ink) == 100)
        ImageDraw.floodfill(ink, (x, y), 0)
        if len(rows) < 20:  # a stray pixel of an edge
            continue
        tone = np.median(image[rows, columns], axis=0)
        name = min(COLOURS, key=lambda name: np.abs(tone - COLOURS[name]).sum())
        out.append(((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), name))


def box_in_pixels(answer, height, width):
    """The box of an answer, in pixels."""
    x1, y1, x2, y2 = (int(v) / 1000 for v in answer.removeprefix("<box>").removesuffix("</box>").split())
    return x1 * width, y1 * height, x2 * width, y2 * height


def assert_well_formed(sample, task):
    """What holds for each sample, whatever it shows."""
    assert sample.task == task
    assert len(sample.characters) == len(sample.images)
    for image, characters in zip(sample.images, sample.characters, strict=True):
        height, width, channels = image.shape
        assert channels == 3
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        for _, left, top, right, bottom in characters:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    assert sample.questions
    assert len({q.text for q in sample.questions}) == len(sample.questions)
    for question in sample.questions:
        assert (question.answer == "It is not there.") == (question.kind == "absent")
        assert "{" not in question.text


def assert_same(first, second):
    assert len(first.images) == len(second.images)
    assert all(np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True))
    assert (first.questions, first.characters, first.layout) == (second.questions, second.characters, second.layout)
