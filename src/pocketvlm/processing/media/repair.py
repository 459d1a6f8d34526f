"""Files whose pixels are whole though Pillow refuses them → files that it reads: bytes to bytes.

PNG: chunks beside the pixels are taken out, among them compressed text and colour profiles, whose size Pillow limits.
JPEG: the last marker is put back where it is missing, if the pixels are complete without it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from io import BytesIO
from typing import IO

from PIL import Image

from pocketvlm.processing.media.limits import MediaLimits

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks that decide what is seen: transparency, orientation, and the frames of an animation.
_KEPT = frozenset((b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"))
_END_OF_IMAGE = b"\xff\xd9"
_BAND = 256  # rows that are compared at a time


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk of a PNG; `file` stands at the chunk's content meanwhile, and may be moved."""
    position = len(PNG_MAGIC)
    file.seek(position)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        yield name, length
        position += 12 + length
        file.seek(position)


def is_animated_png(file: IO[bytes]) -> bool:
    """Whether a PNG is an animation, which it says before its pixels."""
    for name, _ in png_chunks(file):
        if name in (b"acTL", b"IDAT"):
            return name == b"acTL"
    return False


def without_metadata(file: IO[bytes]) -> bytes:
    """A PNG with its pixels and nothing beside them that does not change them."""
    kept = bytearray(PNG_MAGIC)
    for name, length in png_chunks(file):
        # A capital letter marks the chunks that no reader may leave out.
        if name[:1].isupper() or name in _KEPT:
            kept += struct.pack(">I4s", length, name) + file.read(length + 4)
    return bytes(kept)


def with_last_marker(file: IO[bytes], name: str, limits: MediaLimits) -> bytes | None:
    """A JPEG with its last marker; None if it has one, or if pixels are missing as well.

    Pixels are complete if they are the same whatever follows them. Decoders fill missing ones from what follows.

    Raises:
        MediaError: the picture, which errors call `name`, is over a limit. Before its end was added Pillow may not have
            read as far as its size.
    """
    file.seek(0)
    body = file.read()
    if body.endswith(_END_OF_IMAGE):
        return None
    body = body.removesuffix(_END_OF_IMAGE[:1])
    digests = []
    for filler in (b"\x00", b"\x55"):
        with Image.open(BytesIO(body + filler * 4096 + _END_OF_IMAGE), formats=("JPEG",)) as image:
            limits.check_pixels(image.height, image.width, name)
            digests.append(_digest(image))
    return body + _END_OF_IMAGE if digests[0] == digests[1] else None


def _digest(image: Image.Image) -> bytes:
    """What stands for the pixels of a picture, so that no two large ones are in memory at a time."""
    digest = blake2b()
    for top in range(0, image.height, _BAND):
        digest.update(image.crop((0, top, image.width, min(top + _BAND, image.height))).tobytes())
    return digest.digest()
