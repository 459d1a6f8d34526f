"""Pixels equal the reference's, bit for bit after normalising."""

from __future__ import annotations

import io

import numpy as np
import pytest
import reference
import torch
from PIL import Image, ImageDraw

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.model.vision.pixels import normalise, to_reference_layout
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.patches.image import encode_image, resize
from pocketvlm.views import Size

CONFIG = ImageConfig()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours of all frequencies plus a little sensor noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((height, width, 3))
    for cells in (3, 9, 40, 150):
        coarse = rng.integers(0, 256, (min(cells, height), min(cells, width), 3), dtype=np.uint8)
        canvas += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 4.0
    return np.clip(canvas + rng.normal(0, 5, canvas.shape), 0, 255).astype(np.uint8)


def text_page(height: int, width: int) -> np.ndarray:
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for line in range(0, height, 14):
        draw.text((3 + line % 11, line), f"{line} The quick brown fox, 1,234.50 EUR; " * 4, fill=(line % 90, 0, 60))
    return np.asarray(page)


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, (x + y) // 3 % 256], -1).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal_to_reference(pixels: np.ndarray, mode: DownsampleMode, limit: int) -> None:
    # As PIL, because an array of 3 or 4 rows would be taken for channels first there.
    expected = reference.image_processor(downsample_mode=mode, max_slice_nums=limit)(
        Image.fromarray(pixels), return_tensors="pt"
    )
    got = encode_image(pixels, CONFIG, mode, limit)
    assert [[v.size.height, v.size.width] for v in got.views] == expected["target_sizes"].tolist()
    assert list(got.grid or (0, 0)) == list(expected["grids"][0])
    values = to_reference_layout(got.patches, CONFIG)
    assert values.dtype == expected["pixel_values"].dtype
    assert torch.equal(values, expected["pixel_values"])


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize(
    ("make", "height", "width", "limit"),
    [
        (photograph, 480, 640, 9),
        (photograph, 901, 1203, 9),
        (text_page, 1000, 700, 9),
        (text_page, 448, 448, 9),
        (gradient, 333, 777, 9),
        (gradient, 1500, 1100, 36),
        (noise, 97, 89, 9),
        (noise, 61, 700, 1),
        (noise, 1, 1, 9),
        (noise, 2, 3, 9),
        (noise, 4, 1000, 9),
        (noise, 1500, 7, 9),
        (photograph, 56, 56, 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_pixel_values_are_bit_equal(make, height: int, width: int, limit: int, mode: DownsampleMode) -> None:
    assert_equal_to_reference(make(height, width), mode, limit)


def test_one_large_photograph_at_thirty_six_slices() -> None:
    assert_equal_to_reference(photograph(1800, 2600), "16x", 36)


def test_resize_is_bit_equal_to_torchvision() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        height, width, to_height, to_width = (int(n) for n in rng.integers(1, 300, 4))
        picture = noise(height, width)
        expected = reference.tv_functional.resize(
            torch.from_numpy(picture).permute(2, 0, 1).contiguous(),
            [to_height, to_width],
            interpolation=reference.tv_functional.InterpolationMode.BICUBIC,
            antialias=True,
        )
        got = resize(picture, Size(height=to_height, width=to_width))
        assert got.flags.c_contiguous
        assert np.array_equal(got.transpose(2, 0, 1), expected), (height, width, to_height, to_width)


def test_other_mean_and_std_are_bit_equal() -> None:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    config = ImageConfig(image_mean=mean, image_std=std)
    pixels = photograph(200, 300)
    expected = reference.image_processor(image_mean=list(mean), image_std=list(std))(
        Image.fromarray(pixels), return_tensors="pt"
    )
    assert torch.equal(to_reference_layout(encode_image(pixels, config).patches, config), expected["pixel_values"])


def test_normalise_and_reference_layout_hold_the_same_values() -> None:
    patches = encode_image(gradient(200, 300), CONFIG).patches
    by_patch = normalise(patches, CONFIG).view(-1, 14, 14, 3)
    laid_out = to_reference_layout(patches, CONFIG).view(3, 14, -1, 14)
    assert torch.equal(by_patch.permute(3, 1, 0, 2), laid_out)


def test_several_pictures_at_once_equal_the_reference_batch() -> None:
    pictures = [photograph(300, 500, 1), text_page(700, 600), noise(50, 60)]
    expected = reference.image_processor()([Image.fromarray(p) for p in pictures], return_tensors="pt")
    got = np.concatenate([encode_image(p, CONFIG).patches for p in pictures])
    assert torch.equal(to_reference_layout(got, CONFIG), expected["pixel_values"])


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "PA", "P with a transparent entry"])
@pytest.mark.parametrize("kind", ["PIL", "PNG", "JPEG", "WEBP", "GIF"])
def test_every_mode_and_format_is_read_as_the_reference_reads_it(kind: str, mode: str) -> None:
    """Against the reference's own RGB conversion of the same PIL image, which also lays transparency over white."""
    pixels = photograph(70, 90)
    image = Image.fromarray(np.dstack([pixels, gradient(70, 90)[:, :, 1]])).convert(mode.split()[0])
    if mode == "P with a transparent entry":
        image.info["transparency"] = int(np.asarray(image)[5, 5])
    source: Image.Image | bytes = image
    if kind != "PIL":
        if kind == "JPEG" and image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")
        if kind in ("PNG", "GIF", "WEBP") and image.mode in ("CMYK", "PA"):
            image = image.convert("RGB" if image.mode == "CMYK" else "RGBA")
        buffer = io.BytesIO()
        image.save(buffer, kind)
        source = buffer.getvalue()
        image = Image.open(buffer)
    expected = reference.image_processor()(image, return_tensors="pt")["pixel_values"]
    got = encode_image(load_image(source), CONFIG)
    assert torch.equal(to_reference_layout(got.patches, CONFIG), expected)


def test_exif_rotation_is_what_the_reference_loads() -> None:
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(photograph(60, 90)).save(buffer, "JPEG", exif=exif)
        expected = reference.transformers.image_utils.load_image(Image.open(buffer))
        assert np.array_equal(load_image(buffer.getvalue()), np.asarray(expected))
