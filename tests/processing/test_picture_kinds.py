"""Pictures of phones, scanners and old programs: each kind is read, upright, and named where something is missing."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from helpers.documents import heic
from helpers.pictures import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import is_video, load_image, probe_size
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.views import Size

CORNERS = np.full((40, 60, 3), 255, np.uint8)
CORNERS[:20, :30] = (255, 0, 0)
CORNERS[20:, 30:] = (0, 0, 255)
PICTURE = Image.fromarray(CORNERS)


def mpo(picture: Image.Image, **options: object) -> bytes:
    other = Image.new("RGB", picture.size)
    return encoded(picture, "MPO", save_all=True, append_images=[other], quality=95, **options)


KINDS: dict[str, Callable[..., bytes]] = {
    "JPEG": lambda picture, **options: encoded(picture, "JPEG", quality=95, subsampling=0, **options),
    "PNG": encoded,
    "WebP": lambda picture, **options: encoded(picture, "WEBP", lossless=True, **options),
    "AVIF": lambda picture, **options: encoded(picture, "AVIF", quality=95, subsampling="4:4:4", **options),
    "TIFF": lambda picture, **options: encoded(picture, "TIFF", **options),
    "MPO": mpo,
    "HEIC": lambda picture, exif=None: heic(picture, **({"exif": exif.tobytes()} if exif else {})),
}


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_kind_that_says_how_it_was_held_is_turned_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(PICTURE, exif=exif))
    path = tmp_path / "a.picture"  # names do not matter
    path.write_bytes(KINDS[kind](PICTURE, exif=exif))
    assert near(load_image(path), upright)
    assert probe_size(path) == Size(height=upright.shape[0], width=upright.shape[1])
    assert not is_video(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_is_read(mode: str) -> None:
    picture = PICTURE.convert(mode)
    body = encoded(picture, "BMP")
    assert np.array_equal(load_image(body), np.asarray(picture.convert("RGB")))
    assert probe_size(body) == Size(height=40, width=60)


@pytest.mark.parametrize("bare", [False, True], ids=["jp2", "codestream"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jpeg_2000_is_read(mode: str, bare: bool) -> None:
    picture = PICTURE.convert(mode)
    assert np.array_equal(load_image(encoded(picture, "JPEG2000", no_jp2=bare)), np.asarray(picture.convert("RGB")))


def test_deep_jpeg_2000_keeps_its_high_byte() -> None:
    grey = np.asarray(PICTURE.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(load_image(encoded(deep, "JPEG2000"))[:, :, 0], grey)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_heic_is_read_in_every_mode(mode: str) -> None:
    picture = PICTURE.convert(mode)
    assert near(load_image(heic(picture)), np.asarray(picture.convert("RGB")))
    if mode in ("LA", "RGBA"):
        picture.putalpha(0)
        assert load_image(heic(picture)).min() > 250  # over white


def test_deep_heic_keeps_its_high_bits() -> None:
    deep = np.full((40, 64, 3), 0x8000, np.uint16)
    file = pillow_heif.from_bytes("RGB;16", (64, 40), deep.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=100)
    assert np.abs(load_image(buffer.getvalue()).astype(int) - 128).max() <= 2


def test_of_several_pictures_of_a_phone_the_main_one_is_taken() -> None:
    other = Image.new("RGB", (80, 80))
    assert near(load_image(heic(other, PICTURE, primary_index=1)), CORNERS)
    assert near(load_image(heic(PICTURE, other, primary_index=0)), CORNERS)
    by_family = heic(PICTURE).replace(b"ftypheic", b"ftypmif1", 1).replace(b"ftypheix", b"ftypmif1", 1)
    assert near(load_image(by_family), CORNERS)


@pytest.mark.parametrize("cut", [20, 60, 200])
@pytest.mark.parametrize("kind", ["HEIC", "BMP", "JPEG2000"])
def test_what_is_cut_off_says_so_in_one_line(
    kind: str, cut: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = heic(PICTURE) if kind == "HEIC" else encoded(PICTURE, kind)
    path = tmp_path / "a.picture"
    path.write_bytes(body[:cut])
    with pytest.raises(MediaError, match=r"a\.picture is damaged") as error:
        load_image(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["HEIC", "BMP", "JPEG2000"])
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_any_byte_may_be_wrong(kind: str, place: int, value: int) -> None:
    body = bytearray(heic(PICTURE) if kind == "HEIC" else encoded(PICTURE, kind))
    body[place % len(body)] = value
    with suppress(MediaError):
        assert 0 < load_image(bytes(body), MediaLimits(max_pixels=1_000_000)).size <= 3_000_000


@pytest.mark.parametrize("kind", ["HEIC", "BMP", "JPEG2000"])
def test_sizes_are_checked_before_anything_is_decoded(kind: str) -> None:
    body = heic(PICTURE) if kind == "HEIC" else encoded(PICTURE, kind)
    for read in (load_image, probe_size):
        with pytest.raises(MediaError, match=r"is 40 x 60 pixels .*, more than 1000 in all"):
            read(body, MediaLimits(max_pixels=1000))


def test_without_its_package_the_message_names_file_and_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic(PICTURE))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = r"a\.heic is a HEIC picture \(of a phone\), and pillow-heif is not installed\. .*'pocketvlm\[documents\]'"
    with pytest.raises(MediaError, match=message):
        load_image(path)


@pytest.mark.parametrize("kind", ["HEIC", "BMP", "JPEG2000", "MPO"])
def test_a_picture_is_no_video(kind: str) -> None:
    body = KINDS[kind](PICTURE) if kind in KINDS else encoded(PICTURE, kind)
    with pytest.raises(MediaError, match="is a picture, expected a video"), open_video(body, None, MediaLimits(), True):
        pass
