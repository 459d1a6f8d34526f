from __future__ import annotations

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import pytest
import torch
from helpers.pictures import encoded, png_bomb
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media import sources
from pocketvlm.processing.media.load_image import MediaLimits, draw_grid, is_video, load_image, probe_size
from pocketvlm.views import Size

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["path", "str path", "bytes", "data URL", "percent data URL", "PIL", "array", "tensor"]
)
def test_every_kind_of_source_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    body = encoded(Image.fromarray(RGB))
    path = tmp_path / "picture with spaces ü.png"
    path.write_bytes(body)
    source = {
        "path": path,
        "str path": str(path),
        "bytes": body,
        "data URL": "data:image/png;base64," + base64.b64encode(body).decode(),
        "percent data URL": "DATA:image/png," + "".join(f"%{byte:02x}" for byte in body),
        "PIL": Image.fromarray(RGB),
        "array": RGB,
        "tensor": torch.from_numpy(RGB),
    }[kind]
    pixels = load_image(source)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, RGB)
    assert probe_size(source) == Size(height=37, width=53)


def test_data_url_with_line_ends_is_read() -> None:
    text = base64.encodebytes(encoded(Image.fromarray(RGB))).decode()
    assert np.array_equal(load_image("data:image/png;base64," + text), RGB)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY),
        (GREY[:, :, None], GREY),
        (GREY > 127, np.where(GREY > 127, 255, 0)),
        (GREY.astype(np.uint16) * 256 + 9, GREY),
        (GREY.astype(np.float64) / 255, GREY),
        (GREY.astype(np.float16) / 255, GREY),
    ],
    ids=["H,W", "H,W,1", "bool", "uint16", "float64", "float16"],
)
def test_grey_arrays(array: np.ndarray, expected: np.ndarray) -> None:
    assert np.array_equal(load_image(array), np.repeat(expected[:, :, None], 3, axis=2))


def test_channels_first_tensors_and_low_precision() -> None:
    assert np.array_equal(load_image(torch.from_numpy(RGB).permute(2, 0, 1)), RGB)
    white = torch.ones(4, 6, 3, dtype=torch.bfloat16, requires_grad=True)
    assert np.array_equal(load_image(white), np.full((4, 6, 3), 255))


def test_alpha_of_an_array_goes_over_white() -> None:
    array = np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])
    array[3:9, 3:9, 3] = 0
    expected = RGB.copy()
    expected[3:9, 3:9] = 255
    assert np.array_equal(load_image(array), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((2, 5, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.int64),
        np.full((5, 5, 3), 1.5),
        np.full((5, 5, 3), np.nan),
        np.zeros((5, 5, 3), np.complex64),
        np.array([["a"]], dtype=object),
        torch.zeros(5, 5, 3, dtype=torch.complex64),
        torch.zeros(5, 5, 3).to_sparse(),
    ],
)
def test_other_arrays_are_refused(array: object) -> None:
    with pytest.raises(MediaError) as error:
        load_image(array)  # type: ignore[arg-type]
    assert "xpected" in str(error.value)


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_alpha_are_as_pillow_converts_them(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    assert np.array_equal(load_image(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_transparent_is_white_and_opaque_is_unchanged(mode: str) -> None:
    layered = Image.fromarray(np.dstack([RGB, np.where(GREY > 99, 255, 0).astype(np.uint8)]))
    image = layered.convert("LA").convert("La") if mode == "La" else layered.convert(mode)
    pixels = load_image(image)
    assert (pixels[GREY <= 99] == 255).all()
    opaque = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGBA"))[:, :, :3]
    assert np.array_equal(pixels[GREY > 99], opaque[GREY > 99])


def test_half_transparent_black_is_grey() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.array_equal(load_image(image), np.full((4, 4, 3), 127))


def test_palette_with_transparent_entry_goes_over_white() -> None:
    image = Image.fromarray(GREY).convert("P")
    body = encoded(image, transparency=int(np.asarray(image)[0, 0]))
    pixels = load_image(body)
    hidden = np.asarray(image) == np.asarray(image)[0, 0]
    assert (pixels[hidden] == 255).all()
    assert np.array_equal(pixels[~hidden], np.asarray(image.convert("RGB"))[~hidden])


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_transparent_colour_of_a_png_goes_over_white(mode: str) -> None:
    key = (10, 20, 30) if mode == "RGB" else 77 if mode == "L" else 5000
    image = Image.new(mode, (6, 5), key)
    image.putpixel((2, 2), (1, 2, 3) if mode == "RGB" else 5 if mode == "L" else 6000)
    pixels = load_image(encoded(image, transparency=key))
    assert (pixels[0] == 255).all()
    assert pixels[2, 2].tolist() == {"RGB": [1, 2, 3], "L": [5, 5, 5], "I;16": [23, 23, 23]}[mode]


def test_sixteen_bits_keep_their_high_byte() -> None:
    levels = np.arange(0, 65536, 37, dtype=np.uint16)[None]
    expected = np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    assert np.array_equal(load_image(image), expected)
    assert np.array_equal(load_image(encoded(image)), expected)
    assert np.array_equal(load_image(Image.fromarray(levels.astype(np.int32))), expected)


def test_deep_grey_of_eight_bit_range_is_unchanged() -> None:
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    for array in (GREY.astype(np.int32), GREY.astype(np.float32), GREY.astype(np.float32) / 255):
        assert np.array_equal(load_image(Image.fromarray(array)), expected)


def test_mode_without_rgb_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:  # what Pillow before 12 does with LAB
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(MediaError, match="mode LAB has no RGB form"):
        load_image(Image.new("LAB", (3, 3)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_as_pillow_decodes_them(mode: str) -> None:
    body = encoded(Image.fromarray(RGB).convert(mode), "JPEG", quality=80)
    assert np.array_equal(load_image(body), np.asarray(Image.open(io.BytesIO(body)).convert("RGB")))


# --- orientation and animation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    flat = encoded(Image.fromarray(RGB), format, **({"lossless": True} if format == "WEBP" else {}))
    turned = encoded(
        Image.open(io.BytesIO(flat)), format, exif=exif, **({"lossless": True} if format == "WEBP" else {})
    )
    raw = np.asarray(Image.open(io.BytesIO(turned)))
    expected = {
        1: raw,
        2: raw[:, ::-1],
        3: raw[::-1, ::-1],
        4: raw[::-1],
        5: raw.transpose(1, 0, 2),
        6: np.rot90(raw, -1),
        7: raw[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(raw),
    }[orientation]
    pixels = load_image(turned)
    assert np.array_equal(pixels, expected)
    assert probe_size(turned) == Size(height=pixels.shape[0], width=pixels.shape[1])
    assert np.array_equal(load_image(Image.open(io.BytesIO(turned))), expected)


def test_broken_exif_is_ignored() -> None:
    body = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff garbage")
    assert load_image(body).shape == RGB.shape
    assert probe_size(body) == Size(height=37, width=53)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    body = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert np.array_equal(load_image(body), np.asarray(frames[0]))
    assert not is_video(body)


# --- what is refused -------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[MediaError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "does not exist"),
        ("empty.png", b"", "is empty"),
        ("notes.png", b"this is no picture\n" * 20, "is not a JPEG, PNG, WebP, GIF, AVIF"),
        ("short.jpg", encoded(Image.fromarray(RGB), "JPEG")[:-300], "damaged or cut off"),
        ("header.jpg", encoded(Image.fromarray(RGB), "JPEG")[:12], "damaged or cut off"),
        ("short.png", encoded(Image.fromarray(RGB))[:-400], "damaged or cut off"),
        ("header.png", encoded(Image.fromarray(RGB))[:20], "damaged or cut off"),
        ("short.gif", encoded(Image.fromarray(GREY), "GIF")[:-300], "damaged or cut off"),
        ("short.webp", encoded(Image.fromarray(RGB), "WEBP", lossless=True)[:-300], "damaged or cut off"),
        ("bomb.png", png_bomb(50_000, 50_000), "more than 64000000"),
        ("large.png", png_bomb(9_000, 9_000), "9000 x 9000"),
        ("words.png", b"BM and other words", "is not a JPEG, PNG, WebP, GIF, AVIF"),
        ("clip.mp4", b"\x00\x00\x00\x20ftypisom" + bytes(40), "is a video"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as error:
        load_image(path)
    assert name in one_line(error)
    if content:
        with pytest.raises(MediaError, match=message):
            load_image(content)


def test_header_alone_refuses_bombs_but_not_damage_behind_it() -> None:
    with pytest.raises(MediaError, match="more than"):
        probe_size(png_bomb(50_000, 50_000))
    assert probe_size(png_bomb(700, 500)) == Size(height=500, width=700)


def test_directories_devices_and_impossible_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a directory"):
        load_image(tmp_path)
    with pytest.raises(MediaError, match="device or a pipe"):
        load_image("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="device or a pipe"):
        load_image(tmp_path / "pipe")
    for path in ("x" * 5000, "nul\0byte", str(tmp_path / "a.png" / "b.png"), ""):
        with pytest.raises(MediaError) as error:
            load_image(path)
        one_line(error)


@pytest.mark.parametrize("source", [None, 7, 2.5, ["a.png"], {"url": "a.png"}, object()])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(MediaError, match="Expected a picture"):
        load_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["data:", "data:image/png;base64", "data:image/png;base64,@@@@", "data:image/png;base64,"]
)
def test_malformed_data_urls_are_refused(url: str) -> None:
    with pytest.raises(MediaError, match="data: URL"):
        load_image(url)


def test_bodies_over_the_limit_are_refused() -> None:
    limits = MediaLimits(max_bytes=1000)
    with pytest.raises(MediaError, match="more than 1000 bytes"):
        load_image(encoded(Image.fromarray(RGB)), limits)
    with pytest.raises(MediaError, match="more than 1000 bytes"):
        load_image("data:image/png;base64," + "A" * 9000, limits)


@pytest.mark.parametrize("text", ["A" * 1400, "A\n" * 1400, "%41" * 1400, "A" * 1334 + "%3D%3D"])
def test_an_oversized_data_url_is_refused_before_it_is_decoded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> bytes:
        raise AssertionError("decoded")

    monkeypatch.setattr(sources.base64, "b64decode", decode)
    with pytest.raises(MediaError, match="more than 999 bytes"):
        load_image("data:image/png;base64," + text, MediaLimits(max_bytes=999))
    monkeypatch.setattr(sources, "percent_decoded", decode)
    for escaped in ("%41" * 1000, "A" * 1000, "%" * 3001):
        with pytest.raises(MediaError, match="more than 999 bytes"):
            load_image("data:image/png," + escaped, MediaLimits(max_bytes=999))


def test_data_urls_of_exactly_the_limit_are_read() -> None:
    body = encoded(Image.fromarray(RGB))
    for more in range(3):  # bytes behind the picture, so that base64 ends with none, one and two signs of padding
        longer = body + bytes(more)
        for text in (base64.b64encode(longer).decode(), quote(base64.b64encode(longer))):
            url = "data:image/png;base64," + text
            assert np.array_equal(load_image(url, MediaLimits(max_bytes=len(longer))), RGB)
            with pytest.raises(MediaError, match="more than"):
                load_image(url, MediaLimits(max_bytes=len(longer) - 1))
    url = "data:image/png," + quote(body)
    assert np.array_equal(load_image(url, MediaLimits(max_bytes=len(body))), RGB)
    with pytest.raises(MediaError, match="more than"):
        load_image(url, MediaLimits(max_bytes=len(body) - 1))


@given(st.binary(max_size=200), st.sets(st.sampled_from("/%=+ ~_?&")), st.text(max_size=50))
def test_percent_decoding_is_that_of_the_standard_library(body: bytes, safe: set[str], words: str) -> None:
    for escaped in (
        quote(body, safe="".join(safe - {"%"})),
        words,
        "".join(f"%{b:02x}" for b in body),
    ):
        assert sources.percent_decoded(escaped.encode()) == unquote_to_bytes(escaped)


@given(st.lists(st.sampled_from(["%", "%4", "%41", "%fF", "%zz", "%g1", "a", "=", "=41", "\n", "\r\n", "\0", "é"])))
@example(["%"])
@example(["%", "\n"])
@example(["100%"])
def test_malformed_escapes_are_left_as_they_are(pieces: list[str]) -> None:
    text = "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        for size in (sources._PIECE, 3, 4, 5):  # also where pieces meet
            patch.setattr(sources, "_PIECE", size)
            assert sources.percent_decoded(text.encode()) == unquote_to_bytes(text)


def test_a_data_url_with_half_a_character_is_refused() -> None:
    for url in ("data:image/png,\ud800", "data:image/png;base64,\ud800"):
        with pytest.raises(MediaError, match="malformed"):
            load_image(url)


def test_exactly_as_many_bytes_and_pixels_as_allowed_are_accepted() -> None:
    body, percent = encoded(Image.fromarray(RGB)), "data:image/png,"
    given = [body, "data:image/png;base64," + base64.b64encode(body).decode()]
    given.append(percent + "".join(f"%{byte:02X}" for byte in body))  # the longest encoding there is
    for source in given:
        assert load_image(source, MediaLimits(max_bytes=len(body))).shape == RGB.shape
        with pytest.raises(MediaError, match=f"more than {len(body) - 1} bytes"):
            load_image(source, MediaLimits(max_bytes=len(body) - 1))
    pixels = RGB.shape[0] * RGB.shape[1]
    for picture in (body, Image.fromarray(RGB), RGB):
        assert load_image(picture, MediaLimits(max_pixels=pixels)).shape == RGB.shape
        with pytest.raises(MediaError, match=f"more than {pixels - 1}"):
            load_image(picture, MediaLimits(max_pixels=pixels - 1))


def test_paths_can_be_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    for source in (path, str(path), f"file://{path}"):
        with pytest.raises(MediaError, match="Paths are not accepted"):
            load_image(source, files=False)
    assert load_image(encoded(Image.fromarray(RGB)), files=False).shape == RGB.shape


def test_counts_are_checked() -> None:
    limits = MediaLimits(max_images=2, max_frames=3)
    limits.check_counts(2)
    limits.check_frames(3)
    with pytest.raises(MediaError, match="3 pictures, at most 2"):
        limits.check_counts(3)
    with pytest.raises(MediaError, match=r"max_num_frames=4 .* at most 3"):
        limits.check_frames(4)


def test_one_pixel_and_long_strips_are_read() -> None:
    assert load_image(encoded(Image.new("RGB", (1, 1), "red"))).tolist() == [[[255, 0, 0]]]
    assert load_image(encoded(Image.new("L", (20_000, 1)))).shape == (1, 20_000, 3)
    assert load_image(encoded(Image.new("L", (1, 20_000)))).shape == (20_000, 1, 3)


def test_many_threads_read_at_once_and_leave_the_warning_filters_alone() -> None:
    import warnings

    before = list(warnings.filters)
    bodies = [encoded(Image.fromarray(RGB)), encoded(Image.fromarray(RGB), "JPEG"), png_bomb(9_600, 9_600)] * 10

    def read(body: bytes) -> int:
        try:
            return load_image(body).shape[0]
        except MediaError:
            return -1

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, bodies)) == [37, 37, -1] * 10
    assert list(warnings.filters) == before


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_grid_is_drawn_over_the_picture(tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    draw_grid(np.full((60, 90, 3), 255, np.uint8), (2, 3), out)
    drawn = load_image(out)
    marked = (drawn == [230, 0, 90]).all(axis=2)
    assert drawn.shape == (60, 90, 3)
    assert np.flatnonzero(marked.all(axis=1)).tolist() == [0, 29, 30, 59]
    assert np.flatnonzero(marked.all(axis=0)).tolist() == [0, 29, 30, 59, 60, 89]
    draw_grid(np.zeros((1, 1, 3), np.uint8), (3, 3), out)
    draw_grid(np.zeros((5, 5, 3), np.uint8), None, out)


def test_unwritable_drawing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        draw_grid(RGB, (1, 2), tmp_path / "missing" / "grid.png")


# --- video or not ----------------------------------------------------------------------------------------------------


def test_is_video_goes_by_content_first(tmp_path: Path) -> None:
    clip, picture = b"\x00\x00\x00\x20ftypisom" + bytes(20), encoded(Image.fromarray(RGB))
    for name, content, expected in [
        ("a.png", clip, True),
        ("b.mp4", picture, False),
        ("c.mkv", b"\x1a\x45\xdf\xa3" + bytes(20), True),
        ("d.avi", b"RIFF\x00\x00\x00\x00AVI LIST", True),
        ("e.webp", encoded(Image.fromarray(RGB), "WEBP"), False),
        ("f.avif", b"\x00\x00\x00\x20ftypavif" + bytes(20), False),
        ("g.mpg", b"\x47" + bytes(30), True),
        ("h.txt", b"words", False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert is_video(tmp_path / name) is expected, name
        assert is_video(str(tmp_path / name)) is expected, name
    assert is_video(clip)
    assert not is_video(picture)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://example.org/clip.MP4?size=1.png", True),
        ("https://example.org/picture.png?x=.mp4", False),
        ("http://[broken", False),
        ("data:video/mp4;base64,AAAA", True),
        ("data:image/png;base64,AAAA", False),
        ("no/such/file.webm", True),
        ("no/such/file.jpg", False),
        ("nul\0byte.mp4", True),
        (None, False),
        (RGB, False),
    ],
    ids=str,
)
def test_is_video_by_name(source: object, expected: bool) -> None:
    assert is_video(source) is expected
