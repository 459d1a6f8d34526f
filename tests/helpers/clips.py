"""Short clips made on the spot: each frame shows its own number in the brightness of its left half."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from PIL import Image


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
    noise: bool = False,
    pixels: str = "yuv420p",
    shape: Fraction | None = None,
    **options: str,
) -> bytes:
    """An encoded clip.

    Args:
        times: in units of 1 / fps, where frames are not to be even.
        noise: fill the right halves with it, so that frames need many bytes.
        pixels: their form, by FFmpeg's names.
        shape: of a stored pixel, width by height.
    """
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.bit_rate = 2_000_000
        if shape is not None:
            stream.codec_context.sample_aspect_ratio = shape
        stream.options = options
        for number in range(frames):
            colours = frame_pixels(number, height, width)
            if noise:
                colours[:, width // 2 :] = rng.integers(0, 256, (height, width - width // 2, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(colours, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1) / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def animation(format: str, milliseconds: list[int]) -> bytes:
    """A GIF, WebP or PNG (APNG) whose frames are shown for the given times."""
    frames = [Image.fromarray(frame_pixels(number, 48, 64)) for number in range(len(milliseconds))]
    return saved(frames, format, milliseconds)


def saved(frames: list[Image.Image], format: str, milliseconds: list[int]) -> bytes:
    """A file of one or more pictures; several become an animation."""
    buffer = io.BytesIO()
    several = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    if format == "GIF":
        several["disposal"] = 2  # else what is transparent shows the frame before
    exact = {"lossless": True, "method": 0} if format == "WEBP" else {}
    frames[0].save(buffer, format, **(several if len(frames) > 1 else {}), **exact)
    return buffer.getvalue()


def without_packet(transport_stream: bytes, number: int) -> bytes:
    """An MPEG transport stream that lost a packet: the one after `number` of its 188 bytes that carries video."""
    places = [at for at in range(0, len(transport_stream), 188) if transport_stream[at + 1] & 0x1F == 1]
    at = places[number]
    return transport_stream[:at] + transport_stream[at + 188 :]


def without_pictures(mjpeg: bytes, numbers: Iterable[int]) -> bytes:
    """An AVI of JPEG pictures, in some of which nothing is left, not even their beginning."""
    body = bytearray(mjpeg)
    places = [at for at in range(len(body)) if body[at : at + 3] == b"\xff\xd8\xff"]
    for number in numbers:
        end = body.index(b"\xff\xd9", places[number]) + 2
        body[places[number] : end] = bytes(end - places[number])
    return bytes(body)


def turned(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4 with (a, b, c, d) as the rotation of its track, each -1, 0 or 1."""
    body = bytearray(mp4)
    # A version 0 track header: 40 bytes of times, ids and flags come between its name and the matrix.
    start = body.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", body, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(body)


def in_container(body: bytes, format: str, sound: bytes | None = None) -> bytes:
    """The same frames, not coded anew, in another container, and a sound track beside them."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(body)) as first, av.open(buffer, "w", format=format) as container:
        second = av.open(io.BytesIO(sound)) if sound else None
        tracks = [first.streams.video[0], *(second.streams.audio if second else ())]
        copies = [container.add_stream_from_template(track) for track in tracks]
        for track, copy in zip(tracks, copies, strict=True):
            for packet in track.container.demux(track):
                if packet.size:
                    packet.stream = copy
                    container.mux(packet)
        if second:
            second.close()
    return buffer.getvalue()


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
