"""Whatever a user calls a picture → uint8 RGB pixels [H, W, 3], or one clear `MediaError`.

Files, bytes, data: and http(s) URLs. Pictures are read by Pillow, those of phones by libheif and PDF documents by
PDFium; each page of a document is a picture: see `processing.media.page_reader`.

Two stated differences from the reference:
- Transparency is laid over white, always. The reference does so for PIL images but drops it for paths and URLs, which
  uncovers whatever colour lies under it.
- 16-bit grey keeps its high byte, as it does for 16-bit colour; the reference clips it to white at 256.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pocketvlm.errors import MediaError
from pocketvlm.files import whole_file
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.kinds import HEAD_BYTES, is_picture, is_video_content
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.page_reader import open_pages
from pocketvlm.processing.media.pages import PageBudget
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.media.picture_file import decode, upright_size
from pocketvlm.processing.media.rgb import rgb_from_array
from pocketvlm.processing.tensors import is_tensor
from pocketvlm.views import Size

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ImageSource",
    "MediaLimits",
    "draw_grid",
    "is_video",
    "load_image",
    "load_pages",
    "probe_pages",
    "probe_size",
]

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.generic] | Tensor"

_DEFAULT, _RESOLUTION = MediaLimits(), Resolution()
_VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .vob .ts .mts .m2ts .flv .ogv .3gp .wmv".split()  # noqa: SIM905
)


def load_image(
    source: ImageSource,
    limits: MediaLimits = _DEFAULT,
    *,
    files: bool = True,
    resolution: Resolution = _RESOLUTION,
) -> NDArray[np.uint8]:
    """Read one picture, or the one page of a document.

    Args:
        source: a path; the bytes of a file; a data: or http(s) URL; a PIL image of any mode; or pixels as array or
            tensor: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA), also channels first where only that is possible,
            of uint8, bool, uint16 (its high byte is kept) or floats from 0 to 1. A path or URL of a document may end in
            the page that is meant, as in `file.pdf#3`.
        limits: what is refused.
        files: False refuses paths, for callers whose sources come from strangers.
        resolution: of pages that have no pixels of their own.

    Returns:
        uint8 RGB [H, W, 3]; may be read-only.

    Raises:
        MediaError: the source is missing, no picture, damaged, of another layout, or over a limit; a document has
            several pages and none was chosen.
    """
    if (pixels := _pixels_of(source, limits)) is not None:
        return pixels
    with open_pages(source, limits, files, resolution) as pages:
        return pages.reader.read(pages.only)


def load_pages(
    source: ImageSource,
    limits: MediaLimits = _DEFAULT,
    *,
    files: bool = True,
    resolution: Resolution = _RESOLUTION,
    budget: PageBudget | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Read the pages of a document one after the other, or a picture, which is one page.

    Args:
        source, limits, files, resolution: as for `load_image`, but any number of pages may be chosen: `file.pdf#2-5`,
            `#1,4-6`, `#3-`, `#page=3`. Without a choice all are read.
        budget: of the pages of a request; without it this document may have as many as a request.

    Raises:
        MediaError: as `load_image`; there is no such page, or there are too many.
    """
    if (pixels := _pixels_of(source, limits)) is not None:
        yield pixels
        return
    with open_pages(source, limits, files, resolution, budget) as pages:
        for index in pages.indices:
            yield pages.reader.read(index)


def probe_pages(
    source: ImageSource,
    limits: MediaLimits = _DEFAULT,
    *,
    files: bool = True,
    resolution: Resolution = _RESOLUTION,
    budget: PageBudget | None = None,
) -> list[Size]:
    """Height and width in pixels of each page, as `load_pages` would return them; of pictures from the header alone.

    Raises:
        MediaError: as `load_pages`, except for damage behind the header.
    """
    if _is_pixels(source):
        height, width, _ = load_image(source, limits).shape
        return [Size(height=height, width=width)]
    if isinstance(source, Image.Image):
        return [upright_size(source)]
    with open_pages(source, limits, files, resolution, budget) as pages:
        return [pages.reader.size(index) for index in pages.indices]


def probe_size(
    source: ImageSource,
    limits: MediaLimits = _DEFAULT,
    *,
    files: bool = True,
    resolution: Resolution = _RESOLUTION,
) -> Size:
    """Height and width in pixels, as `load_image` would return them, from the header alone.

    Raises:
        MediaError: as `load_image`, except for damage behind the header.
    """
    if _is_pixels(source) or isinstance(source, Image.Image):
        return probe_pages(source, limits)[0]
    with open_pages(source, limits, files, resolution) as pages:
        return pages.reader.size(pages.only)


def draw_grid(
    source: ImageSource,
    grid: tuple[int, int] | None,
    out: str | Path,
    limits: MediaLimits = _DEFAULT,
    *,
    fine: Sequence[bool] = (),
) -> None:
    """Write the picture to a PNG with the borders of its slices drawn over it.

    Args:
        source: as for `load_image`.
        grid: (rows, columns); None draws nothing but the frame.
        out: the file to write; an ordinary file of that name is replaced.
        fine: which slices, row by row, are at 4x while others are not: their borders are green and wider.

    Raises:
        MediaError: as `load_image`.
        ConfigError, OutputError: `out` cannot be written.
    """
    image = Image.fromarray(load_image(source, limits))
    rows, columns = grid or (1, 1)
    thickness = max(1, min(image.size) // 200)
    draw = ImageDraw.Draw(image)
    # Those at 4x last, so that no neighbour draws over their borders.
    for number in sorted(range(rows * columns), key=lambda n: n < len(fine) and fine[n]):
        row, column = divmod(number, columns)
        left, top = column * image.width // columns, row * image.height // rows
        right, bottom = (column + 1) * image.width // columns - 1, (row + 1) * image.height // rows - 1
        is_fine = number < len(fine) and fine[number]
        # A slice narrower than one pixel has no border to draw.
        draw.rectangle(
            (left, top, max(left, right), max(top, bottom)),
            outline=(0, 150, 60) if is_fine else (230, 0, 90),
            width=2 * thickness if is_fine else thickness,
        )
    with whole_file(Path(out)) as file:
        image.save(file, "PNG")


def is_video(source: object) -> bool:
    """True if the source is a video by its content or, where that is not at hand or says nothing, by its extension.

    Fetches nothing: of a URL only the path is looked at. Never raises: what cannot be read is left to the reader.
    """
    if isinstance(source, bytes):
        return is_video_content(source[:HEAD_BYTES])
    if not isinstance(source, (str, Path)):
        return False
    text = str(source)
    if is_data_url(text):
        return text[:11].lower() == "data:video/"
    if is_url(text):
        try:
            return Path(urlsplit(text).path).suffix.lower() in _VIDEO_SUFFIXES
        except ValueError:
            return False
    try:
        path = Path(text)
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if is_picture(head) or is_video_content(head):
                return is_video_content(head)
    except (OSError, ValueError):
        pass
    return Path(text).suffix.lower() in _VIDEO_SUFFIXES


def _pixels_of(source: ImageSource, limits: MediaLimits) -> NDArray[np.uint8] | None:
    """uint8 RGB [H, W, 3] of what has been decoded already; None of what is still to be opened."""
    if _is_pixels(source):
        return rgb_from_array(_as_array(source), limits)
    if isinstance(source, Image.Image):
        return decode(source, limits, "The PIL image")
    return None


def _is_pixels(source: object) -> TypeGuard[NDArray[np.generic] | Tensor]:
    return isinstance(source, np.ndarray) or is_tensor(source)


def _as_array(source: NDArray[np.generic] | Tensor) -> NDArray[np.generic]:
    if isinstance(source, np.ndarray):
        return source
    if source.is_complex() or str(source.layout) != "torch.strided":
        raise MediaError("Expected a dense real tensor of pixels", hint="Convert to uint8.")
    # numpy has no bfloat16.
    return (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
