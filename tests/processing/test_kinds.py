"""Files that people send: read where their pixels are whole, and otherwise told apart in one line."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import encoded, png_chunk, with_chunk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from PIL.JpegImagePlugin import JpegImageFile

from pocketvlm.errors import MediaError
from pocketvlm.processing.media import picture_file as module
from pocketvlm.processing.media.load_image import MediaLimits, is_video, load_image, probe_size
from pocketvlm.processing.media.sources import is_path
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.views import Size

RGB = np.random.default_rng(5).integers(0, 256, (37, 53, 3), dtype=np.uint8)
PICTURE = Image.fromarray(RGB)
SMOOTH = np.asarray(PICTURE.resize((160, 96), Image.Resampling.BICUBIC))
LARGE = zlib.compress(bytes(3_000_000))  # more text than Pillow takes
METADATA = {
    b"zTXt": b"Comment\0\0" + LARGE,
    b"iTXt": b"Comment\0\x01\0\0\0" + LARGE,
    b"iCCP": b"profile\0\0" + zlib.compress(bytes(100_000_000)),
    b"tEXt": b"Comment\0" + b"x" * 10,
}

# --- whole pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind_pixels", [False, True])
@pytest.mark.parametrize("kind", METADATA, ids=lambda kind: kind.decode())
def test_large_metadata_beside_sound_pixels_does_not_matter(kind: bytes, behind_pixels: bool, tmp_path: Path) -> None:
    body = with_chunk(encoded(PICTURE), kind, METADATA[kind], behind_pixels=behind_pixels)
    path = tmp_path / "a.png"
    path.write_bytes(body)
    for source in (body, path):
        assert np.array_equal(load_image(source), RGB)
        assert probe_size(source) == Size(height=37, width=53)


def test_what_decides_the_look_stays_when_metadata_is_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = with_chunk(encoded(PICTURE, exif=exif), b"zTXt", METADATA[b"zTXt"])
    assert np.array_equal(load_image(turned), np.rot90(RGB, -1))
    keyed = with_chunk(encoded(Image.new("RGB", (6, 5), (1, 2, 3)), transparency=(1, 2, 3)), b"zTXt", METADATA[b"zTXt"])
    assert (load_image(keyed) == 255).all()


def test_a_damaged_png_stays_damaged_without_its_metadata() -> None:
    body = with_chunk(encoded(PICTURE), b"zTXt", METADATA[b"zTXt"])
    with pytest.raises(MediaError, match="damaged or cut off"):
        load_image(body[:-500])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_last_marker_is_whole(mode: str, progressive: bool) -> None:
    body = encoded(Image.fromarray(SMOOTH).convert(mode), "JPEG", quality=90, progressive=progressive)
    for cut in (1, 2):
        assert np.array_equal(load_image(body[:-cut]), load_image(body))


@given(cut=st.integers(3, 2500))
def test_a_jpeg_that_lost_pixels_is_refused(cut: int) -> None:
    body = encoded(Image.fromarray(SMOOTH), "JPEG", quality=90)
    assert len(body) > 5000
    with pytest.raises(MediaError, match="damaged or cut off"):
        load_image(body[:-cut])


@pytest.mark.parametrize("side", [1500, 20_000])
def test_the_size_of_a_jpeg_that_is_cut_off_is_checked_before_it_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses a header that is cut off before its size is known, and would read it with a few bytes more."""
    body = bytearray(encoded(Image.fromarray(SMOOTH), "JPEG"))
    frame, scan = body.index(b"\xff\xc0"), body.index(b"\xff\xda")
    body[frame + 5 : frame + 9] = side.to_bytes(2, "big") * 2
    length = int.from_bytes(body[scan + 2 : scan + 4], "big")
    monkeypatch.setattr(JpegImageFile, "load", lambda _: pytest.fail("it was decoded"))
    for read in (load_image, probe_size):
        with pytest.raises(MediaError, match="more than 1000"):
            read(bytes(body[: scan + 1 + length]), MediaLimits(max_pixels=1000))


def test_a_png_and_a_gif_without_their_end_are_whole() -> None:
    png, gif = encoded(PICTURE), encoded(PICTURE, "GIF")
    assert np.array_equal(load_image(png[: png.rindex(b"IEND") - 4]), RGB)
    assert np.array_equal(load_image(gif[:-1]), load_image(gif))


def test_avif_is_read() -> None:
    body = encoded(Image.fromarray(SMOOTH), "AVIF", quality=100, subsampling="4:4:4")
    assert np.abs(load_image(body).astype(int) - SMOOTH).max() < 12
    assert not is_video(body)
    by_family = body.replace(b"ftypavif", b"ftypmif1", 1)
    assert np.array_equal(load_image(by_family), load_image(body))


def test_without_avif_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    body = encoded(PICTURE, "AVIF")
    monkeypatch.setattr(module.features, "check", lambda name: name != "avif" and features.check(name))
    with pytest.raises(MediaError, match=r"is an AVIF picture\. Install pillow>=11\.3"):
        load_image(body)


# --- told apart ------------------------------------------------------------------------------------------------------


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "words")
    return buffer.getvalue()


OTHERS = {
    "a.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", "rsvg-convert"),
    "declared.svg": (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="5">', "SVG", "cairosvg"),
    "page.jpg": (b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>", "web page", "address of the file itself"),
    "strict.jpg": (b'<?xml version="1.0"?><!DOCTYPE html><html>', "web page", "address of the file itself"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS", "git lfs pull"),
    "coded.png": (base64.b64encode(encoded(PICTURE)), "base64", "data:image/png;base64"),
    "a.ico": (encoded(PICTURE, "ICO"), "ICO", "PNG or JPEG"),
    "a.jxl": (b"\xff\x0a" + bytes(40), "JPEG XL", "PNG or JPEG"),
    "a.psd": (b"8BPS" + bytes(40), "Photoshop", "PNG or JPEG"),
    "a.eps": (b"%!PS-Adobe-3.0", "PostScript", "Ghostscript"),
    "a.docx": (archive(), "ZIP archive or an office document", "Unpack"),
    "a.doc": (b"\xd0\xcf\x11\xe0" + bytes(40), "office document", "PNG"),
    "a.png.gz": (gzip.compress(encoded(PICTURE)), "gzip", "Unpack"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_picture_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    body, kind, hint = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(body)
    for source in (path, body):
        with pytest.raises(MediaError, match=f"is .*{kind}.*, which cannot be read here") as error:
            load_image(source)
        assert hint in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(MediaError, match=f"is .*{kind}"), open_video(source, None, MediaLimits(), True):
            pass
    assert not is_video(path)


def test_a_long_path_whose_first_letters_are_a_picture_in_base64_is_a_path() -> None:
    """ "/wo" is the beginning of a JPEG XL picture, and of /workspace, where many people work."""
    for path in ("/workspace/data/documents/invoices/scanned/today/page.png", "/work/" + "a" * 60, "H4s" + "a" * 60):
        assert is_path(path)
        with pytest.raises(MediaError, match="does not exist"):
            load_image(path)


def test_bare_base64_and_file_urls_are_told_apart_from_paths(tmp_path: Path) -> None:
    for format in ("PNG", "JPEG", "GIF", "WEBP"):
        bare = base64.b64encode(encoded(PICTURE, format)).decode()
        for source, files in ((bare, True), (bare, False), (Path(bare), True)):
            with pytest.raises(MediaError, match=r"got bare base64\. Put data:image/"):
                load_image(source, files=files)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE))
    for source in (f"file://{path}", Path(f"file://{path}")):
        with pytest.raises(MediaError, match=r"is a file: URL\. Give the path alone"):
            load_image(source)
    # A path may consist of the same characters.
    with pytest.raises(MediaError, match="does not exist"):
        load_image("home/someone/pictures/holidays2026/inGreece")


def test_a_transport_stream_is_a_video_by_its_content() -> None:
    packet = b"\x47" + bytes(187)
    assert is_video(packet * 4)
    assert is_video((bytes(4) + packet) * 4)
    assert not is_video(packet + bytes(400))
    with pytest.raises(MediaError, match="is a video, expected a picture"):
        load_image(packet * 4)


def test_chunks_of_a_png_end_with_the_file() -> None:
    for body in (b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", b"")[:-6]):
        with pytest.raises(MediaError, match="damaged or cut off"):
            load_image(body)
