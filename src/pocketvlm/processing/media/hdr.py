"""Frames of HDR videos (PQ and HLG, ITU-R BT.2100) → the range of an ordinary screen, as players show them there.

Without it such frames look pale: a code value of PQ means a brightness up to 10,000 cd/m², not a share of a screen's.
Reference white, 203 cd/m² (ITU-R BT.2408), stays light; what is brighter is compressed by the curve that FFmpeg's
filter `tonemap` calls mobius, up to a peak of 1,000 cd/m².

Shapes:  H × W pixels
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18  # transfer characteristics by their numbers in ITU-T H.273
BT2020 = 9  # colour primaries by theirs
WHITE, PEAK = 203.0, 1000.0  # cd/m²
_KNEE = 0.3  # of white: darker values stay as they are
_LEVELS = 2**16
# Light of BT.2020's primaries as that of BT.709's (ITU-R BT.2087).
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's primaries


def is_hdr(transfer: int) -> bool:
    """Whether a frame of this transfer characteristic needs `to_screen`."""
    return transfer in (PQ, HLG)


def to_screen(codes: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """uint16 R'G'B' [H, W, 3], of which 65535 is full, → uint8 sRGB [H, W, 3]."""
    light = _light_of(transfer)[codes]  # of white
    if transfer == HLG:  # what a display of `PEAK` makes of the scene (BT.2100's OOTF)
        light *= ((light / (PEAK / WHITE)) @ _LUMINANCE)[..., None] ** 0.2
    if primaries == BT2020:
        light = light @ _TO_BT709.T
    np.clip(light, 0, PEAK / WHITE, out=light)
    # By the brightest part, so that colours keep their hue.
    brightest = light.max(-1, keepdims=True)
    light *= compressed(brightest) / np.maximum(brightest, 1e-6)
    return _srgb()[np.rint(light * (_LEVELS - 1)).astype(np.uint16)]


def compressed(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light from 0 to `PEAK` / `WHITE` → from 0 to 1: as it is up to the knee, then ever flatter."""
    peak = PEAK / WHITE
    a = -(_KNEE**2) * (peak - 1) / (_KNEE**2 - 2 * _KNEE + peak)
    b = (_KNEE**2 - 2 * _KNEE * peak + peak) / (peak - 1)
    scale = (b * b + 2 * b * _KNEE + _KNEE**2) / (b - a)
    made: NDArray[np.float32] = np.where(light <= _KNEE, light, scale * (light + a) / (light + b)).astype(np.float32)
    return made.clip(0, 1)


@cache
def _light_of(transfer: int) -> NDArray[np.float32]:
    """[65536] light of each code, in multiples of white; of HLG that of the scene, of which 1 is `PEAK` / `WHITE`."""
    code = np.linspace(0, 1, _LEVELS)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        nits = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        nits = PEAK * np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return (nits / WHITE).astype(np.float32)


@cache
def _srgb() -> NDArray[np.uint8]:
    """[65536] sRGB value of each share of white (IEC 61966-2-1)."""
    light = np.linspace(0, 1, _LEVELS)
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * value).astype(np.uint8)
