"""Pictures and clips as bytes of files, without loss: what is read back is what was drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import MediaError


def to_png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [height, width, 3], RGB, as a PNG file."""
    buffer = io.BytesIO()
    # The lightest compression: such files live as long as a request.
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_mp4(frames: Sequence[NDArray[np.uint8]], fps: float) -> bytes:
    """Frames uint8 [height, width, 3], RGB, all of one size, as an MP4 file: H.264 that keeps every pixel.

    Args:
        fps: frames a second.

    Raises:
        MediaError: no frames, frames of different sizes, or a rate that is not positive.
    """
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise MediaError("the frames of a clip differ in size, or there are none")
    if not 0 < fps <= 1000:
        raise MediaError(f"fps={fps!r} is no number of frames a second", hint="Expected 0 < fps <= 1000.")
    rate = Fraction(fps).limit_denominator(1001)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # RGB rather than YUV: halved colour planes would blur thin coloured lines, and need even sizes.
        stream = container.add_stream("libx264rgb", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24"
        stream.options = {"qp": "0", "preset": "ultrafast"}
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
