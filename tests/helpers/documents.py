"""Small documents made on the spot: PDF and TIFF by hand, part by part, so that any part can be wrong; and HEIC."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Sequence

import pillow_heif
from PIL import Image

RED, GREEN, BLUE = (1, 0, 0), (0, 1, 0), (0, 0, 1)
Colour = tuple[float, float, float]


def write_pdf(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A file of these objects, the first of which is the catalogue; `trailer` holds further entries of its trailer."""
    body, places = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(body)
    body += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    body += b"".join(b"%010d 00000 n \n" % place for place in places)
    body += b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(body)


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), entries, content)


def rectangle(colour: Colour, left: float, bottom: float, width: float, height: float) -> bytes:
    """Operators that fill one; the origin of a page is at its lower left."""
    return b"%g %g %g rg %g %g %g %g re f\n" % (*colour, left, bottom, width, height)


def words(text: str, left: float = 10, bottom: float = 50, size: float = 20, *, mode: int = 0) -> bytes:
    """Operators that write a line; in mode 3 nobody sees it."""
    return b"BT /F1 %g Tf %d Tr %g %g Td (%s) Tj ET\n" % (size, mode, left, bottom, text.encode("latin-1"))


def pdf(
    *contents: bytes,
    box: Sequence[float] | bytes = (0, 0, 120, 80),
    page: bytes = b"",
    others: Sequence[bytes] = (),
    catalogue: bytes = b"",
    trailer: bytes = b"",
) -> bytes:
    """A page for each of `contents`.

    Args:
        contents: operators of a page; the font F1 is there.
        box: left, bottom, right and top of each page, in points.
        page: further entries of each page.
        others: further objects, from number 4 on.
        catalogue, trailer: further entries of these.
    """
    first = 4 + len(others)
    pages = [first + 2 * number for number in range(len(contents))]
    media_box = box if isinstance(box, bytes) else b"[" + b" ".join(b"%.15g" % side for side in box) + b"]"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R%s>>" % catalogue,
        b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(pages), b" ".join(b"%d 0 R" % number for number in pages)),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *others,
    ]
    for number, content in zip(pages, contents, strict=True):
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox %s/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>"
            b"/XObject<</X 4 0 R>>>>%s>>" % (media_box, number + 1, page)
        )
        objects.append(stream(content))
    return write_pdf(objects, trailer)


def coloured(*colours: Colour, box: Sequence[float] = (0, 0, 120, 80)) -> bytes:
    """A page for each colour, filled with it."""
    left, bottom, right, top = box
    return pdf(*(rectangle(one, left, bottom, right - left, top - bottom) for one in colours), box=box)


def protected(body: bytes, password: bytes = b"secret") -> bytes:
    """A PDF of `pdf` that asks for a password; an empty one is that of a file that only limits what readers may do."""
    padding = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")
    owner, rights = b"\x5a" * 32, struct.pack("<i", -4)
    key = hashlib.md5((password + padding)[:32] + owner + rights + b"\0").digest()[:5]
    entry = b"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>/ID[<00><00>]" % (
        owner.hex().encode(),
        _rc4(key, padding).hex().encode(),
    )

    def encrypted(match: re.Match[bytes]) -> bytes:
        number = struct.pack("<I", int(match[2]))[:3] + b"\0\0"
        return match[1] + _rc4(hashlib.md5(key + number).digest()[:10], match[3]) + b"\nendstream"

    body = re.sub(rb"((\d+) 0 obj\n<<[^\n]*>>\nstream\n)(.*?)\nendstream", encrypted, body, flags=re.DOTALL)
    return body.replace(b"/Root 1 0 R", b"/Root 1 0 R" + entry)


def _rc4(key: bytes, content: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    found, i, j = bytearray(), 0, 0
    for byte in content:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        found.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(found)


def write_tiff(*pages: tuple[dict[int, int | float | Sequence[int]], bytes], order: str = "<") -> bytes:
    """A TIFF of pages that are not compressed, or already are.

    Args:
        pages: tags of each (whole numbers, or fractions as floats; places and lengths are added) and its one strip.
        order: of bytes, as `struct` has it.
    """
    body = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    last = 4  # where the place of the next directory is written
    for tags, strip in pages:
        data, entries = len(body), {**tags, 273: 0, 279: len(strip)}
        body += strip + bytes(len(strip) % 2)
        entries[273] = data
        packed = []
        for tag, value in sorted(entries.items()):
            values = value if isinstance(value, Sequence) else [value]
            form, code = (5, "I") if isinstance(value, float) else (4, "I")
            if form == 5:
                values = [round(float(values[0]) * 1000), 1000]
            content = struct.pack(order + f"{len(values)}{code}", *values)
            count = len(values) // (2 if form == 5 else 1)
            if len(content) > 4:
                packed.append(struct.pack(order + "HHII", tag, form, count, len(body)))
                body += content
            else:
                packed.append(struct.pack(order + "HHI", tag, form, count) + content.ljust(4, b"\0"))
        struct.pack_into(order + "I", body, last, len(body))
        body += struct.pack(order + "H", len(packed)) + b"".join(packed)
        last = len(body)
        body += bytes(4)
    return bytes(body)


def heic(picture: Image.Image, *others: Image.Image, **options: object) -> bytes:
    """A HEIC picture, and others beside it."""
    file = pillow_heif.from_pillow(picture)
    for other in others:
        file.add_from_pillow(other)
    buffer = io.BytesIO()
    file.save(buffer, quality=100, chroma=444, **options)
    return buffer.getvalue()
