"""A HEIC picture, as phones make them → uint8 RGB pixels, through libheif (package pillow-heif)."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import MediaError, MissingExtraError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.picture_file import decode
from pocketvlm.views import Size


class HeifReader:
    """The main picture of an open file; libheif turns it as the file says.

    Args:
        file: seekable; stays open, and is the caller's to close.
        name: what errors call it.
        limits: what is refused.

    Raises:
        MediaError: damaged, or of a kind that is not known; or pillow-heif is not installed.
    """

    is_document = False
    count = 1

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits) -> None:
        self._name, self._limits = name, limits
        try:
            library = _load_library()
        except MissingExtraError as error:
            raise MediaError(f"{name} is a HEIC picture (of a phone), and {error}") from None
        file.seek(0)
        try:
            found = library.open_heif(file, convert_hdr_to_8bit=True)
            self._image: Any = found[found.primary_index]
        except Exception:
            raise self._unreadable() from None

    def close(self) -> None:
        """Nothing is open: the library has read the whole file."""

    def size(self, _: int = 0, /) -> Size:
        """Height and width in pixels, upright, from the header alone."""
        width, height = self._image.size
        self._limits.check_pixels(height, width, self._name)
        return Size(height=height, width=width)

    def read(self, _: int = 0, /) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3]; may be read-only.

        Raises:
            MediaError: damaged, or over a limit.
        """
        self.size()  # before anything is decoded
        try:
            picture = self._image.to_pillow()
        except Exception:
            raise self._unreadable() from None
        return decode(picture, self._limits, self._name)

    def _unreadable(self) -> MediaError:
        hint = "Check that it opens elsewhere, or save it as JPEG."
        return MediaError(f"{self._name} is damaged, or a HEIF of a kind that is not known here", hint=hint)


def _load_library() -> Any:
    """The package, loaded when the first such picture comes; it is not registered with Pillow, which has one registry
    for the whole process.
    """
    try:
        import pillow_heif
    except ImportError:
        raise MissingExtraError("pillow-heif", "documents") from None
    return pillow_heif
