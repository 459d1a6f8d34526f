"""Frames of an animated WebP by index, through Pillow: FFmpeg does not read them.

Frames are shown one after the other from the first to the last, once, however often the file asks for a repetition.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.rgb import rgb_from_pil
from pocketvlm.processing.media.timeline import Timeline

_SHORTEST = 10  # milliseconds: browsers show frames of up to this for a tenth of a second, and so does FFmpeg for GIF


class WebPReader:
    """Frames of an open WebP file; one that is not animated has one.

    Args:
        file: seekable; stays open, and is the caller's to close.
        name: what errors call it.
        limits: what is refused.

    Raises:
        MediaError: damaged, or over a limit.
    """

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits) -> None:
        self._name, self._limits = name, limits
        lengths = [100 if length <= _SHORTEST else length for length in _frame_lengths(file)] or [100]
        file.seek(0)
        try:
            self._image = Image.open(file, formats=("WEBP",))
        except Exception:
            # Pillow raises nearly every kind of exception on hostile headers.
            raise self._damaged() from None
        limits.check_pixels(self._image.height, self._image.width, name)
        starts = [0, *accumulate(lengths)]
        self.timeline = Timeline.of([start / 1000 for start in starts[:-1]], starts[-1] / 1000, None)

    def close(self) -> None:
        self._image.close()

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(index, uint8 RGB [H, W, 3]) for each of `indices`, which are ascending and without repetition."""
        for index in indices:
            try:
                self._image.seek(index)
                pixels = np.asarray(rgb_from_pil(self._image.copy()))
            except Exception:
                raise self._damaged() from None
            yield index, pixels

    def _damaged(self) -> MediaError:
        return MediaError(f"{self._name} is damaged or cut off", hint="Check that it opens elsewhere, or save it anew.")


def _frame_lengths(file: IO[bytes]) -> list[int]:
    """Milliseconds of each frame of an animation, from the chunks of the file; nothing is decoded."""
    lengths = []
    file.seek(12)  # past "RIFF", the size, and "WEBP"
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        body = file.read(min(size, 16))
        if name == b"ANMF" and len(body) == 16:
            # Left, top, width, height and length are 24 bits each.
            lengths.append(int.from_bytes(body[12:15], "little"))
        file.seek(size - len(body) + size % 2, 1)
    return lengths
