"""What a file is, by its first bytes: a picture, a video, or something else that people send, and what to do then."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from pocketvlm.errors import MediaError

HEAD_BYTES = 512  # what the functions here want to see of a file

_JPEG_2000 = (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
_PICTURE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", *_JPEG_2000)
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # of both byte orders; the last two are large ones
# What the content of a video starts with: Matroska and WebM, FLV, Ogg, MPEG program stream, MPEG video, Windows Media.
_VIDEO_MAGIC = (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"OggS", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_TRANSPORT = ((0, 188), (4, 192))  # MPEG transport streams: where their packets of this size have their first byte
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40}")


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that is not read here.

    Attributes:
        name: what it is, with its article.
        hint: what to do about it.
    """

    name: str
    hint: str

    def refused(self, name: str) -> MediaError:
        """The error for a source called `name`."""
        return MediaError(f"{name} is {self.name}, which cannot be read here", hint=self.hint)


_CONVERT = "Convert it to PNG or JPEG."
_SVG = Kind("an SVG drawing", "Render it to a PNG, for example with `rsvg-convert` or the package cairosvg.")
_HTML = Kind("a web page (HTML)", "Give the address of the file itself, not of the page that shows it.")
_LFS = Kind("a pointer of Git LFS, not the file itself", "Run `git lfs pull` in the repository it came from.")
_PDF = Kind("a PDF document", "Pass it as a picture, which its pages are.")  # said where a video is expected
_BASE64_TEXT = Kind("base64 text", "Decode it, or put `data:image/png;base64,` in front and pass it as a URL.")

# Each with the bytes it starts with.
_MAGIC = (
    (b"\x00\x00\x01\x00", Kind("an ICO icon", _CONVERT)),
    (b"\xff\x0a", Kind("a JPEG XL picture", _CONVERT)),
    (b"\x00\x00\x00\x0cJXL ", Kind("a JPEG XL picture", _CONVERT)),
    (b"8BPS", Kind("a Photoshop file", _CONVERT)),
    (b"%!PS", Kind("a PostScript file", "Convert it to PNG, for example with Ghostscript.")),
    (b"AT&TFORM", Kind("a DjVu document", "Render its pages to PNG, for example with `ddjvu`.")),
    (b"PK\x03\x04", Kind("a ZIP archive or an office document", "Unpack it, or export its pages as PNG.")),
    (b"\xd0\xcf\x11\xe0", Kind("an office document", "Export its pages as PNG.")),
    (b"\x1f\x8b", Kind("compressed with gzip", "Unpack it first.")),
    (b"version https://git-lfs", _LFS),
)

_SHORT_MAGIC = tuple(magic for magic, _ in _MAGIC if len(magic) < 3)  # which text has by chance


def is_picture(head: bytes) -> bool:
    """True for JPEG, PNG, GIF, WebP, AVIF, HEIC, TIFF, BMP and JPEG 2000."""
    return (
        head.startswith(_PICTURE_MAGIC)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or is_avif(head)
        or is_heic(head)
        or is_tiff(head)
        or (head[:2] == b"BM" and head[6:10] == bytes(4) and len(head) > 10)
    )


def is_avif(head: bytes) -> bool:
    """True for AVIF, which may call itself by the name of its family first."""
    if head[4:8] != b"ftyp":
        return False
    brands = [head[8:12]] if head[8:12] not in (b"mif1", b"msf1") else [head[i : i + 4] for i in range(16, 64, 4)]
    return any(brand in _AVIF_BRANDS for brand in brands)


def is_heic(head: bytes) -> bool:
    """True for HEIC, the other picture of that family."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS and not is_avif(head)


def is_tiff(head: bytes) -> bool:
    """True for TIFF, which may have several pages."""
    return head.startswith(_TIFF)


def is_pdf(head: bytes) -> bool:
    """True for PDF, which may have rubbish in front of it, as readers allow; not for what is something else there."""
    if is_picture(head) or is_video_content(head) or any(head.startswith(magic) for magic, _ in _MAGIC):
        return False
    return b"%PDF-" in head


def is_video_content(head: bytes) -> bool:
    """True for what starts like a video."""
    if any(len(head) > first + 2 * size and set(head[first::size]) == {0x47} for first, size in _TRANSPORT):
        return True
    return (
        head.startswith(_VIDEO_MAGIC)
        or (head[4:8] == b"ftyp" and head[8:12] not in (*_AVIF_BRANDS, *_HEIC_BRANDS))
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or (head[4:8] in (b"moov", b"mdat", b"wide") and head[:2] == b"\x00\x00")
    )


def kind_of(head: bytes) -> Kind | None:
    """What a file is that is no picture or video for us; None for these, and for what nobody knows."""
    if is_picture(head) or is_video_content(head):
        return None
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if is_pdf(head):
        return _PDF
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    # Before its first element a drawing or a page may have declarations and comments.
    if text.startswith((b"<svg", b"<?xml", b"<!")) and b"<svg" in text:
        return _SVG
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in text:
        return _HTML
    if is_base64(head[:64].decode("latin-1")):
        return _BASE64_TEXT
    return None


def is_base64(text: str) -> bool:
    """True for text that begins with a picture, a video or a document in base64, which paths and words do not."""
    if not _BASE64.match(text):
        return False
    try:
        head = base64.b64decode(text[:40])
    except (binascii.Error, ValueError):
        return False
    if head.startswith(_SHORT_MAGIC):  # "/wo" in base64: /workspace/… is a path
        return False
    return is_picture(head) or is_video_content(head) or kind_of(head) is not None
