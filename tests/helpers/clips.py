"""Short clips made on the spot: each frame shows its own number in the brightness of its left half."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np


def frame_pixels(number: int, height: int, width: int) -> np.ndarray:
    """Left half: grey of level 16 + 4 * number; right half: a red and a blue field, so that turning shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 16 + 4 * number
    pixels[: height // 2, width // 2 :, 0] = 200
    pixels[height // 2 :, width // 2 :, 2] = 200
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """The frame number that a decoded frame shows."""
    height, width = pixels.shape[:2]
    return round((float(pixels[height // 4 : -height // 4, width // 8 : width // 4].mean()) - 16) / 4)


def clip(
    frames: int = 50,
    fps: int | Fraction = 10,
    height: int = 48,
    width: int = 64,
    *,
    codec: str = "mpeg4",
    format: str = "mp4",
    times: list[int] | None = None,
    **options: str,
) -> bytes:
    """An encoded clip; `times` in units of 1 / fps where frames are not to be even."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.options = options
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_pixels(number, height, width), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1) / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def turned(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4 with (a, b, c, d) as the rotation of its track, each -1, 0 or 1."""
    body = bytearray(mp4)
    # A version 0 track header: 40 bytes of times, ids and flags come between its name and the matrix.
    start = body.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", body, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(body)


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
