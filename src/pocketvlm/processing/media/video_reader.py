"""Frames of a video by index, from whatever a user calls a video: a file of any kind, or pixels already there.

A reader says when which frame is shown, then yields the wanted ones in order, one at a time, so that memory stays at a
few frames however long the clip is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.animation import WebPReader
from pocketvlm.processing.media.kinds import HEAD_BYTES, is_pdf, is_picture, kind_of
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.media.repair import PNG_MAGIC, is_animated_png
from pocketvlm.processing.media.sources import describe, open_source
from pocketvlm.processing.media.timeline import Timeline, check_rate
from pocketvlm.processing.tensors import is_tensor

if TYPE_CHECKING:
    from pocketvlm.processing.media.video_file import FileReader

Frame = tuple[int, NDArray[np.uint8]]


class FrameReader(Protocol):
    """Frames by index, 0 <= index < timeline.total."""

    timeline: Timeline

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        """(index, uint8 RGB [H, W, 3]) for each of `indices`, which are ascending and without repetition."""


class PixelReader:
    """Frames that are already decoded: [T, H, W, 3], [T, 3, H, W] or a sequence of pictures of any kind."""

    def __init__(self, frames: Any, fps: float | None, limits: MediaLimits, files: bool) -> None:
        if isinstance(frames, np.ma.MaskedArray):
            raise MediaError("Expected an array of frames, got a masked array", hint="Call filled() on it first.")
        if (isinstance(frames, np.ndarray) or is_tensor(frames)) and frames.ndim != 4:
            raise MediaError(f"Expected frames of shape [frames, height, width, 3], got {list(frames.shape)}")
        if len(frames) == 0:
            raise MediaError("The video has no frames", hint="Pass at least one.")
        if fps is None:
            raise MediaError("Frames were given without their rate", hint="Pass fps, frames a second.")
        rate = check_rate(fps)
        self.timeline = Timeline(len(frames), rate, len(frames) / rate)
        self._frames, self._limits, self._files = frames, limits, files

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield index, load_image(self._frames[index], self._limits, files=self._files)


@contextmanager
def open_video(source: object, fps: float | None, limits: MediaLimits, files: bool) -> Iterator[FrameReader]:
    """A reader for a path, bytes, a data: or http(s) URL, or frames (which need `fps`).

    Raises:
        MediaError: the source is missing, no video, damaged, without frames or their rate, or over a limit.
    """
    if isinstance(source, (np.ndarray, list, tuple)) or is_tensor(source):
        yield PixelReader(source, fps, limits, files)
        return
    if fps is not None:
        raise MediaError("fps was given for a video file, which has its own", hint="Leave it out.")
    name = describe(source)
    with (
        open_source(source, name, limits, files, "a video", "or frames with fps") as stream,
        closing(_open_stream(stream, name, limits)) as reader,
    ):
        yield reader


def _open_stream(stream: IO[bytes], name: str, limits: MediaLimits) -> FileReader | WebPReader:
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPReader(stream, name, limits)
    if is_pdf(head):
        raise MediaError(f"{name} is a PDF document, expected a video", hint="Pass it as a picture.")
    kind = kind_of(head)
    if kind is not None:
        raise kind.refused(name)
    # Of pictures only GIF and PNG may move.
    if (
        is_picture(head)
        and not head.startswith(b"GIF")
        and not (head.startswith(PNG_MAGIC) and is_animated_png(stream))
    ):
        raise MediaError(f"{name} is a picture, expected a video", hint="Pass it as a picture, or convert it to MP4.")
    from pocketvlm.processing.media.video_file import FileReader  # brings PyAV, which pictures do without

    return FileReader(stream, name, limits)
