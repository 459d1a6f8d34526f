"""An open file of one picture → uint8 RGB pixels, through Pillow, which is shown the formats named here only.

Orientation from EXIF is applied; of an animation, or of the pictures of one shot (MPO), the first one counts. What
Pillow refuses though its pixels are whole is repaired first.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.kinds import HEAD_BYTES, is_avif, is_picture, is_video_content, kind_of
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.repair import PNG_MAGIC, with_last_marker, without_metadata
from pocketvlm.processing.media.rgb import rgb_from_pil
from pocketvlm.views import Size

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG2000")
NAMES = "JPEG, PNG, WebP, GIF, AVIF, HEIC, TIFF, BMP or JPEG 2000 picture, or a PDF document"
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# `warnings.catch_warnings` changes global state, so only one thread at a time may be inside. Only headers are read
# there: decoding, which takes the time, stays parallel.
_quiet_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings (bombs, odd metadata): a picture is either refused by our limits or read."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class PictureReader:
    """The one page that a picture is.

    Args:
        file: seekable; stays open, and is the caller's to close.
        name: what errors call it.
        limits: what is refused.
    """

    is_document = False
    count = 1

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits) -> None:
        self._file, self._name, self._limits = file, name, limits

    def close(self) -> None:
        """Nothing of its own is open between calls."""

    def size(self, _: int = 0, /) -> Size:
        """Height and width in pixels, upright, from the header alone."""
        try:
            with _open(self._file, self._name, self._limits) as image:
                return upright_size(image)
        except _DamagedError:
            with _open(self._repaired(), self._name, self._limits) as image:
                return upright_size(image)

    def read(self, _: int = 0, /) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3].

        Raises:
            MediaError: no picture, damaged, or over a limit.
        """
        try:
            with _open(self._file, self._name, self._limits) as image:
                return decode(image, self._limits, self._name)
        except _DamagedError:
            with _open(self._repaired(), self._name, self._limits) as image:
                return decode(image, self._limits, self._name)

    def _repaired(self) -> IO[bytes]:
        return _repaired(self._file, self._name, self._limits)


def decode(image: Image.Image, limits: MediaLimits, name: str) -> NDArray[np.uint8]:
    """All pixels of an open picture, upright; may be read-only."""
    limits.check_pixels(image.height, image.width, name)
    try:
        image.load()
        orientation = _orientation(image)
        rgb = rgb_from_pil(image)
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        # A view of Pillow's export: a writeable copy would take as long as decoding.
        return np.asarray(rgb)
    except MediaError:
        raise
    except Exception:
        # Decoders raise nearly every kind of exception on damaged files, and their texts are not for users.
        raise _damaged(name) from None


def upright_size(image: Image.Image) -> Size:
    """Height and width as `decode` gives them."""
    if _orientation(image) >= 5:
        return Size(height=image.width, width=image.height)
    return Size(height=image.height, width=image.width)


def _open(stream: IO[bytes], name: str, limits: MediaLimits) -> Image.Image:
    """Open a picture with its header read and its size checked; nothing is decoded yet."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    formats: tuple[str, ...] = FORMATS
    if is_avif(head):
        if not features.check("avif"):
            raise MediaError(f"{name} is an AVIF picture", hint="Install pillow>=11.3 to read it, or convert it.")
        formats = ("AVIF",)
    try:
        with quiet():
            image = Image.open(stream, formats=formats)
    except Image.DecompressionBombError:
        raise too_large(name, limits) from None
    except Exception:
        # Pillow's plugins raise nearly every kind of exception on hostile headers.
        if is_video_content(head):
            raise MediaError(f"{name} is a video, expected a picture", hint="Pass it as a video.") from None
        if is_picture(head):
            raise _damaged(name) from None
        kind = kind_of(head)
        if kind is not None:
            raise kind.refused(name) from None
        raise MediaError(f"{name} is not a {NAMES}", hint="Convert it to one.") from None
    limits.check_pixels(image.height, image.width, name)
    return image


class _DamagedError(MediaError):
    """A file that looks like a picture and that Pillow refuses; it may be possible to repair."""


def too_large(name: str, limits: MediaLimits) -> MediaError:
    return MediaError(f"{name} has more than {limits.max_pixels} pixels", hint="Scale it down first.")


def _damaged(name: str) -> _DamagedError:
    return _DamagedError(f"{name} is damaged or cut off", hint="Check that it opens elsewhere, or save it anew.")


def _repaired(stream: IO[bytes], name: str, limits: MediaLimits) -> IO[bytes]:
    """The same picture as far as its pixels are whole; `MediaError` if they are not, or if there are too many."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    repaired = None
    if head.startswith(PNG_MAGIC):
        repaired = without_metadata(stream)
    elif head.startswith(b"\xff\xd8"):
        try:
            with quiet():
                repaired = with_last_marker(stream, name, limits)
        except Image.DecompressionBombError:
            raise too_large(name, limits) from None
        except MediaError:
            raise
        except Exception:  # as above
            repaired = None
    if repaired is None:
        raise _damaged(name)
    return BytesIO(repaired)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        with quiet():
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Broken metadata makes no picture unreadable.
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSE else 1
