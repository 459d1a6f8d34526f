"""Pixels of any mode, depth and layout → uint8 RGB.

For PIL images of every mode, and for arrays. Transparency goes over white; high depths are scaled to 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits

_WHITE = (255, 255, 255, 255)
GREY_LEVELS = "pocketvlm grey levels"  # in `info` of an image of mode I;16: (bits that its levels have, 0 is white)


def rgb_from_pil(image: Image.Image) -> Image.Image:
    """Any mode → "RGB": transparency over white, high depths scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16)
        bits, is_inverted = image.info.get(GREY_LEVELS, (16, False))
        grey = np.minimum(levels >> (bits - 8), 255).astype(np.uint8)
        grey = 255 - grey if is_inverted else grey
        if isinstance(image.info.get("transparency"), int):
            grey[levels == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_from_deep_grey(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        if image.mode == "La":
            image = image.convert("LA")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise MediaError(f"A PIL image of mode {image.mode} has no RGB form", hint="Convert it first.") from None


def _from_deep_grey(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """32-bit integers or floats of unknown range → uint8: the range is taken from the largest value.

    Pillow says nothing about the range of these modes; 0..1 (floats), 0..255 and 0..65535 all occur.
    """
    values = np.nan_to_num(levels.astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max())
    if np.issubdtype(levels.dtype, np.floating) and top <= 1.0:
        values = np.rint(values * 255)
    elif top > 255:
        values = values // 256
    return np.clip(values, 0, 255).astype(np.uint8)


def rgb_from_array(array: NDArray[np.generic], limits: MediaLimits) -> NDArray[np.uint8]:
    """An array in one of the layouts of `load_image` → uint8 [H, W, 3]."""
    if type(array) is not np.ndarray:
        # Views of a matrix stay of two axes, and those of a masked array keep its mask, which no picture has.
        if isinstance(array, np.ma.MaskedArray):
            raise MediaError("Expected an array of pixels, got a masked array", hint="Call filled() on it first.")
        array = np.asarray(array)
    shape = list(array.shape)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise MediaError(
            f"Expected pixels of shape [height, width] or [height, width, 1, 3 or 4], got {shape}",
            hint="Pass one picture at a time.",
        )
    limits.check_pixels(array.shape[0], array.shape[1], "The array")
    pixels = _to_uint8(array)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        return np.asarray(rgb_from_pil(Image.fromarray(np.ascontiguousarray(pixels))))
    return pixels


def _to_uint8(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array.view(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return (array.astype(np.uint16) >> 8).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float32)
        if not (float(values.min()) >= 0.0 and float(values.max()) <= 1.0):
            raise MediaError("Expected floating-point pixels from 0 to 1", hint="Divide by the largest value.")
        return np.rint(values * 255).astype(np.uint8)
    raise MediaError(f"Expected pixels of uint8, bool, uint16 or floats, got {array.dtype}", hint="Convert to uint8.")
