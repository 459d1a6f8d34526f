"""Pages of a TIFF → uint8 RGB pixels, through Pillow and its libtiff.

A page is turned as its tag says. A fax of black and white whose rows lie farther apart than its columns is stretched to
the shape of the paper. Reduced copies of a page, and its masks, are no pages.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.picture_file import decode, quiet, too_large
from pocketvlm.processing.media.rgb import GREY_LEVELS
from pocketvlm.views import Size

MAX_PAGES = 10_000  # that are counted
_MOST_TAGS = 64  # of a directory that are looked at: they are in ascending order, and those that decide come first
_KIND, _WIDTH, _HEIGHT, _BITS, _ORIENTATION, _ACROSS, _DOWN, _INNER = 254, 256, 257, 258, 274, 282, 283, 330
_COMPRESSION, _PHOTOMETRIC = 259, 262
# That every libtiff of Pillow's reads. Of others (WebP, JBIG, LERC) it says no more than that decoding failed.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000))
_REDUCED, _MASK = 1, 4  # bits of _KIND
_STRETCH = (1.1, 4.0)  # rows to columns of a fax: the coarse ones have 204 x 98 dots an inch
_silenced = False


class TiffReader:
    """Pages of an open TIFF, counted from 0.

    Args:
        file: seekable; stays open, and is the caller's to close.
        name: what errors call it.
        limits: what is refused.

    Attributes:
        count: how many there are.

    Raises:
        MediaError: damaged, of a kind that is not known, or with more than `MAX_PAGES` pages.
    """

    is_document = True

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits) -> None:
        self._name, self._limits = name, limits
        self._sizes: dict[int, Size] = {}  # once: of a page that was read Pillow drops the tag that turns it
        _silence()
        kinds = list(_directories(file, name))
        self._frames = [number for number, (kind, _) in enumerate(kinds) if not kind & (_REDUCED | _MASK)]
        if not self._frames:
            if any(has_inner for _, has_inner in kinds):
                raise MediaError(
                    f"{name} is a raw picture of a camera, which cannot be read here", hint="Export it as JPEG."
                )
            self._frames = list(range(len(kinds)))
        self.count = len(self._frames)
        file.seek(0)
        try:
            with quiet():
                self._image: Any = Image.open(file, formats=("TIFF",))
        except Image.DecompressionBombError:
            raise too_large(name, limits) from None
        except Exception:
            # Pillow raises nearly every kind of exception on hostile headers, and on kinds that it does not know.
            raise self._unreadable(0) from None

    def close(self) -> None:
        """Nothing is open but the file, which Pillow would close."""

    def size(self, index: int, /) -> Size:
        """Pixels of a page, as `read` gives them."""
        if index in self._sizes:
            return self._sizes[index]
        self._go(index)
        tags = self._image.tag_v2
        down, across = self._stretch()
        height, width = round(tags[_HEIGHT] * down), round(tags[_WIDTH] * across)
        if tags.get(_ORIENTATION, 1) in (5, 6, 7, 8):
            height, width = width, height
        self._limits.check_pixels(height, width, self._where(index))
        self._sizes[index] = Size(height=height, width=width)
        return self._sizes[index]

    def read(self, index: int, /) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3] of a page; may be read-only.

        Raises:
            MediaError: the page is damaged, of a kind that is not known, or over a limit.
        """
        size = self.size(index)
        self._go(index)
        tags = self._image.tag_v2
        is_known = tags.get(_COMPRESSION, 1) in _COMPRESSIONS
        bits = tags.get(_BITS, (16,))
        # Pillow reads 12 bits into 16 as they are, and turns none of these white where 0 is white.
        self._image.info[GREY_LEVELS] = (bits[0] if isinstance(bits, tuple) else bits, tags.get(_PHOTOMETRIC) == 0)
        try:
            pixels = decode(self._image, self._limits, self._where(index))
        except MediaError:
            if is_known:
                raise
            raise self._unreadable(index) from None
        if pixels.shape[:2] == (size.height, size.width):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((size.width, size.height), Image.Resampling.BICUBIC))

    def _go(self, index: int) -> None:
        try:
            with quiet():
                self._image.seek(self._frames[index])
            if not all(isinstance(self._image.tag_v2[tag], int) for tag in (_WIDTH, _HEIGHT)):
                raise TypeError
        except Exception:
            raise self._unreadable(index) from None

    def _stretch(self) -> tuple[float, float]:
        """By what height and width of a page of black and white are to be multiplied."""
        tags = self._image.tag_v2
        with suppress(Exception):  # fractions by zero, texts
            if tags.get(_BITS, (1,)) == (1,):
                across, down = float(tags[_ACROSS]), float(tags[_DOWN])
                if _STRETCH[0] < across / down < _STRETCH[1]:
                    return across / down, 1.0
                if _STRETCH[0] < down / across < _STRETCH[1]:
                    return 1.0, down / across
        return 1.0, 1.0

    def _where(self, index: int) -> str:
        return self._name if self.count == 1 else f"page {index + 1} of {self._name}"

    def _unreadable(self, index: int) -> MediaError:
        hint = "Check that it opens elsewhere, or save it as PNG."
        return MediaError(f"{self._where(index)} is damaged, or a TIFF of a kind that is not known here", hint=hint)


def _directories(file: IO[bytes], name: str) -> Iterator[tuple[int, bool]]:
    """The kind of each directory (a page, a reduced copy, a mask), and whether others are inside it."""
    damaged = MediaError(f"{name} is damaged or cut off", hint="Check that it opens elsewhere, or save it anew.")
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2:4] in (b"+\0", b"\0+")
    # BigTIFF has the same parts, wider.
    count, entry, place = ("Q", "HHQQ", "Q") if is_big else ("H", "HHII", "I")
    seen = set[int]()
    try:
        (at,) = struct.unpack_from(order + place, head, 8 if is_big else 4)
        while at and at not in seen:
            seen.add(at)
            if len(seen) > MAX_PAGES:
                raise MediaError(f"{name} has more than {MAX_PAGES} pages", hint="Split it.")
            file.seek(at)
            (tags,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
            size = struct.calcsize(order + entry)
            block = file.read(size * min(tags, _MOST_TAGS))
            kind, has_inner = 0, False
            for start in range(0, len(block) - size + 1, size):
                tag, form, _, _ = struct.unpack_from(order + entry, block, start)
                has_inner |= tag == _INNER
                if tag == _KIND:
                    # A value stands at the beginning of its field, whatever its width.
                    width = "H" if form == 3 else "I"
                    (kind,) = struct.unpack_from(order + width, block, start + size - struct.calcsize(order + place))
            yield kind, has_inner
            file.seek(at + struct.calcsize(order + count) + size * tags)
            (at,) = struct.unpack(order + place, file.read(struct.calcsize(order + place)))
    except (struct.error, OverflowError, ValueError, OSError) as error:
        if isinstance(error, MediaError):
            raise
        # What was found can be read: some programs forget to end the list.
        if len(seen) < 2:
            raise damaged from None
    if not seen:
        raise damaged


def _silence() -> None:
    """Keep libtiff from writing to stderr what it finds wrong: an error of ours says it, in one line."""
    global _silenced
    if not _silenced:
        _silenced = True
        with suppress(OSError, AttributeError):  # linked in another way
            library = ctypes.CDLL(_imaging.__file__)
            for function in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
                function(None)
