"""Pages of a document → small pictures of them, each as one view: what a person chooses from.

They travel as views do, so that they are drawn where all media are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import ImageConfig
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.page_reader import Pages, open_pages
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.patches.image import ImageViews, encode_image
from pocketvlm.processing.prompt.expansion import Units
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.views import Size

_PATCH, _STEP = 14, 56  # pixels; sides of views are multiples of the second


def previews_of(part: MediaPart, side: int, limits: MediaLimits, files: bool) -> Units:
    """One view of each page that was chosen behind the #, or of the first ones, as many as a request may have.

    A page that cannot be read has no views.

    Args:
        side: each has about as many pixels as a square of this side.

    Raises:
        MediaError: the document cannot be read, has no such page, or too many were chosen; the message names its place.
    """
    config = ImageConfig(scale_resolution=max(side // _STEP, 1) * _STEP, patch_size=_PATCH, max_slice_nums=1)
    resolution = Resolution.of(config)
    try:
        with open_pages(part.source, limits, files, resolution, most=limits.max_images) as pages:
            return tuple(_previews(pages, config))
    except MediaError as error:
        raise MediaError(f"{part.where}: {error}") from None


def _previews(pages: Pages, config: ImageConfig) -> Iterator[ImageViews]:
    none = ImageViews(np.empty((0, _PATCH, _PATCH, 3), np.uint8), (), None, Size(height=0, width=0))
    for index in pages.indices:
        try:
            made = encode_image(pages.reader.read(index), config)
        except MediaError:
            if not pages.reader.is_document:
                raise
            made = none  # the others can be chosen all the same
        yield replace(made, pages=pages.reader.count)


def pixels_of(preview: ImageViews) -> NDArray[np.uint8] | None:
    """uint8 RGB [H, W, 3] of what `previews_of` made; None of a page that cannot be read."""
    if not preview.views:
        return None
    rows, columns = preview.views[0].size.height, preview.views[0].size.width
    side = preview.patches.shape[1]
    in_rows = preview.patches.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(in_rows.reshape(rows * side, columns * side, 3))
