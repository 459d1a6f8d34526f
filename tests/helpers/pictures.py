"""Small picture files made on the spot, and what of an encoded picture decides its features."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def content_of(encoded: Any) -> tuple[object, bytes]:
    """Views and pixels of `ImageViews` or `ModelInputs`."""
    return encoded.views, encoded.patches.tobytes()


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more pixels than its few bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


def with_chunk(png: bytes, kind: bytes, body: bytes, *, behind_pixels: bool = False) -> bytes:
    """A PNG with one more chunk, in front of its pixels or behind them."""
    place = (png.rindex(b"IEND") if behind_pixels else png.index(b"IDAT")) - 4
    return png[:place] + png_chunk(kind, body) + png[place:]
