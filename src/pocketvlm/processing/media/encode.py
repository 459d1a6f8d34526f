"""Pixels → the bytes of a file, for programs that take no pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 RGB [H, W, 3] as a PNG file, lightly compressed: it lives as long as a request."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_jpeg(picture: NDArray[np.uint8], quality: int = 85) -> bytes:
    """uint8 RGB [H, W, 3] as a JPEG file, for people to look at."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
