"""TIFF files: every page a picture, in every depth and compression that scanners, faxes and programs write."""

from __future__ import annotations

import io
import zlib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.documents import write_tiff
from helpers.pictures import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.errors import MediaError
from pocketvlm.processing.media import tiff as module
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import is_video, load_image, load_pages, probe_pages, probe_size
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.views import Size

CORNERS = np.full((40, 60, 3), 255, np.uint8)
CORNERS[:20, :30] = (255, 0, 0)
CORNERS[20:, 30:] = (0, 0, 255)
PICTURE = Image.fromarray(CORNERS)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
COLOURED = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", None)


def tiff(*pages: Image.Image, **options: Any) -> bytes:
    return encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)


def close(found: np.ndarray, expected: Any, most: int = 0) -> bool:
    difference = np.abs(found.astype(int) - np.asarray(expected.convert("RGB")).astype(int))
    return found.shape[:2] == difference.shape[:2] and int(difference.max()) <= most


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["group3", "group4", *COLOURED], ids=str)
def test_faxes_of_one_bit_are_read(compression: str | None) -> None:
    page = PICTURE.convert("1")
    assert close(load_image(tiff(page, compression=compression)), page)


@pytest.mark.parametrize("compression", COLOURED, ids=str)
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "YCbCr"])
def test_colours_are_those_of_pillow_in_every_compression(mode: str, compression: str | None) -> None:
    page = NOISE.convert(mode)
    assert close(load_image(tiff(page, compression=compression)), page, 2)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_in_tiff_is_read(mode: str) -> None:
    assert close(load_image(tiff(PICTURE.convert(mode), compression="jpeg", quality=95)), PICTURE.convert(mode), 60)


def test_deep_grey_keeps_its_high_byte() -> None:
    grey = np.asarray(NOISE.convert("L"))
    expected = Image.fromarray(grey)
    deep = grey.astype(np.uint16) * 256 + 77
    assert close(load_image(tiff(Image.fromarray(deep))), expected)
    tags = {256: 60, 257: 40, 258: 16, 259: 1, 262: 1, 277: 1, 278: 40}
    assert close(load_image(write_tiff((tags, deep.astype(">u2").tobytes()), order=">")), expected)
    assert close(load_image(tiff(Image.fromarray(grey.astype(np.float32) / 255))), expected)


def test_deep_grey_in_which_white_is_zero_is_no_negative() -> None:
    grey = np.asarray(NOISE.convert("L"))
    tags = {256: 60, 257: 40, 258: 16, 259: 1, 262: 0, 277: 1, 278: 40}
    deep = (65535 - (grey.astype(np.uint16) * 256 + 77)).astype("<u2")
    assert close(load_image(write_tiff((tags, deep.tobytes()))), Image.fromarray(grey), 1)


def test_grey_of_12_bits_is_as_bright_as_it_is() -> None:
    grey = np.asarray(NOISE.convert("L"))
    levels = (grey.astype(np.uint32) * 16 + 7).reshape(40, 30, 2)
    packed = levels[..., 0] << 12 | levels[..., 1]
    strip = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8).tobytes()
    tags = {256: 60, 257: 40, 258: 12, 259: 1, 262: 1, 277: 1, 278: 40}
    assert close(load_image(write_tiff((tags, strip))), Image.fromarray(grey))


def test_deep_colour_keeps_its_high_byte() -> None:
    deep = np.asarray(NOISE).astype("<u2") * 256 + 99
    tags = {256: 60, 257: 40, 258: [16, 16, 16], 259: 1, 262: 2, 277: 3, 278: 40}
    for compression in (1, 8):
        strip = deep.tobytes() if compression == 1 else zlib.compress(deep.tobytes())
        assert close(load_image(write_tiff((tags | {259: compression}, strip))), NOISE)


def test_white_may_be_zero_and_what_is_transparent_is_white() -> None:
    tags = {256: 8, 257: 1, 258: 1, 259: 1, 262: 0, 277: 1, 278: 1}
    assert load_image(write_tiff((tags, b"\xf0")))[0, :, 0].tolist() == [0] * 4 + [255] * 4
    layer = PICTURE.convert("RGBA")
    layer.putalpha(0)
    assert (load_image(tiff(layer)) == 255).all()


@pytest.mark.parametrize("big", [False, True])
def test_large_files_have_another_head(big: bool) -> None:
    body = tiff(NOISE, PICTURE, big_tiff=big)
    assert body[2] == (43 if big else 42)
    assert [close(page, one) for page, one in zip(load_pages(body), (NOISE, PICTURE), strict=True)] == [True] * 2


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_page_is_turned_as_its_tag_says(orientation: int, compression: str | None) -> None:
    body = tiff(PICTURE, tiffinfo={274: orientation}, compression=compression)
    exif = Image.Exif()
    exif[274] = orientation
    expected = load_image(encoded(PICTURE, "PNG", exif=exif))
    found = load_image(body)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < (10 if compression == "jpeg" else 0.1)
    assert probe_size(body) == Size(height=found.shape[0], width=found.shape[1])


# --- pages -----------------------------------------------------------------------------------------------------------


def test_every_page_is_a_picture_of_its_own(tmp_path: Path) -> None:
    pages = [PICTURE.convert("1"), NOISE.resize((90, 20)), PICTURE.convert("CMYK"), NOISE.convert("L").rotate(90)]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(*pages))
    found = list(load_pages(path))
    assert all(close(page, one, 2) for page, one in zip(found, pages, strict=True))
    assert probe_pages(path) == [Size(height=page.shape[0], width=page.shape[1]) for page in found]
    for choice, indices in (("#3", [2]), ("#4,1", [3, 0]), ("#2-", [1, 2, 3]), ("#1,1", [0, 0])):
        chosen = list(load_pages(f"{path}{choice}"))
        assert all(np.array_equal(page, found[i]) for page, i in zip(chosen, indices, strict=True))
    with pytest.raises(MediaError, match=r"a\.tif has 4 pages, one is expected here"):
        load_image(path)
    with pytest.raises(MediaError, match=r"a\.tif has 4 pages, there is no page 5"):
        load_image(f"{path}#5")


def test_a_turned_page_may_be_chosen_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(PICTURE, tiffinfo={274: 6}))
    first, second = load_pages(f"{path}#1,1")
    assert first.shape == (60, 40, 3)
    assert np.array_equal(first, second)


GREY_TAGS = {258: 8, 259: 1, 262: 1, 277: 1}


def grey(level: int, height: int = 6, width: int = 4, **tags: Any) -> tuple[dict[int, Any], bytes]:
    sizes = {256: width, 257: height, 278: height}
    return GREY_TAGS | sizes | {int(tag[1:]): value for tag, value in tags.items()}, bytes([level]) * height * width


def test_reduced_copies_and_masks_are_no_pages() -> None:
    body = write_tiff(grey(1), grey(2, 3, 2, t254=1), grey(3, t254=2), grey(4, t254=4), grey(5, t254=3))
    assert [int(page[0, 0, 0]) for page in load_pages(body)] == [1, 3]
    assert int(load_image(write_tiff(grey(7, t254=1)))[0, 0, 0]) == 7  # all there is


def test_a_raw_picture_of_a_camera_is_named() -> None:
    with pytest.raises(MediaError, match=r"is a raw picture of a camera, .* Export it as JPEG"):
        load_image(write_tiff(grey(7, t254=1, t330=8)))


def test_a_coarse_fax_has_the_shape_of_its_paper() -> None:
    def fax(across: float, down: float, bits: int = 1) -> bytes:
        tags = {256: 64, 257: 30, 258: bits, 259: 1, 262: 1, 277: 1, 278: 30, 282: across, 283: down, 296: 2}
        return write_tiff((tags, bytes(8 * 30 * bits)))

    assert load_image(fax(204.0, 98.0)).shape == (62, 64, 3)
    assert probe_size(fax(204.0, 98.0)) == Size(height=62, width=64)
    assert load_image(fax(98.0, 196.0)).shape == (30, 128, 3)
    for across, down in ((204.0, 196.0), (200.0, 200.0), (200.0, 0.0), (500.0, 1.0)):
        assert load_image(fax(across, down)).shape == (30, 64, 3)
    assert load_image(fax(204.0, 98.0, bits=8)).shape == (30, 64, 3)  # no fax


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"II*\0", "is damaged or cut off"),
        (b"MM\0*" + bytes(40), "is damaged or cut off"),
        (b"II+\0" + bytes(40), "is damaged or cut off"),
        (write_tiff(), "is damaged or cut off"),
        (tiff(NOISE, compression="tiff_lzw")[:900], "is damaged"),
        (write_tiff(({256: 4, 257: 4, 258: 8, 259: 34_000, 262: 1, 277: 1}, b"")), "kind that is not known here"),
        (write_tiff(({258: 8, 259: 1, 262: 1, 277: 1}, b"")), "kind that is not known here"),
        (write_tiff(grey(1)).replace(b"\x01" * 24, b"", 1), "is damaged"),
    ],
)
def test_what_is_damaged_or_unknown_says_so_in_one_line(
    body: bytes, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(body)
    with pytest.raises(MediaError, match=message) as error:
        load_image(path)
    assert str(error.value).startswith(str(path))
    assert capfd.readouterr().err == ""  # libtiff itself is silent


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_damaged_page_is_named_and_the_others_are_read(
    compression: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    body = bytearray(tiff(NOISE, NOISE, compression=compression))
    with Image.open(io.BytesIO(body)) as image:
        image.seek(1)
        (second,) = image.tag_v2[273]
    body[second : second + 400] = bytes(400)
    path.write_bytes(body)
    assert load_image(f"{path}#1").shape == (40, 60, 3)
    with pytest.raises(MediaError, match=r"^page 2 of .*a\.tif is damaged"):
        load_image(f"{path}#2")
    assert capfd.readouterr().err == ""


def test_pages_that_go_round_in_a_circle_are_counted_once() -> None:
    body = bytearray(write_tiff(grey(1), grey(2)))
    first = int.from_bytes(body[4:8], "little")
    body[-4:] = first.to_bytes(4, "little")
    assert len(list(load_pages(bytes(body)))) == 2


def test_too_many_pages_are_refused_before_they_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAGES", 20)
    with pytest.raises(MediaError, match="has 17 pages, at most 16 pictures and pages"):
        list(load_pages(write_tiff(*[grey(1)] * 17)))
    with pytest.raises(MediaError, match="has more than 20 pages"):
        list(load_pages(write_tiff(*[grey(1)] * 21)))


def test_the_size_of_each_page_is_checked_before_it_is_decoded() -> None:
    limits = MediaLimits(max_pixels=1000)
    tags = GREY_TAGS | {256: 100_000, 257: 100_000, 278: 1}
    for body, message in (
        (write_tiff((tags, b"")), "more than 1000"),
        (write_tiff(grey(1), grey(2, 50, 50)), r"page 2 of .* is 50 x 50 pixels"),
        (write_tiff((tags | {256: 0}, b"")), "damaged|expected at least 1 x 1"),
    ):
        with pytest.raises(MediaError, match=message):
            list(load_pages(body, limits))


@given(st.integers(0, 2000), st.integers(0, 255), st.integers(0, 3))
def test_any_byte_may_be_wrong(place: int, value: int, kind: int) -> None:
    compression = (None, "tiff_lzw", "group4", "jpeg")[kind]
    pages = [PICTURE.convert("1")] * 2 if compression == "group4" else [PICTURE, PICTURE]
    body = bytearray(tiff(*pages, compression=compression))
    body[place % len(body)] = value
    with suppress(MediaError):
        assert 0 < sum(page.size for page in load_pages(bytes(body), MediaLimits(max_pixels=100_000))) < 10_000_000


@given(st.integers(0, 3000))
def test_a_file_that_is_cut_off_anywhere_is_read_or_refused(length: int) -> None:
    with suppress(MediaError):
        list(load_pages(tiff(PICTURE, PICTURE, compression="tiff_lzw")[:length]))


def test_a_tiff_is_no_video() -> None:
    body = tiff(NOISE)
    assert not is_video(body)
    with pytest.raises(MediaError, match="is a picture, expected a video"), open_video(body, None, MediaLimits(), True):
        pass


def test_a_reader_leaves_the_file_of_its_caller_open() -> None:
    file = io.BytesIO(tiff(NOISE))
    with closing(module.TiffReader(file, "a.tif", MediaLimits())) as reader:
        reader.read(0)
    assert file.seek(0) == 0
