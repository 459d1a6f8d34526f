from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketvlm.processing import tensors
from pocketvlm.processing.patches import image, resample
from pocketvlm.processing.patches.image import resize
from pocketvlm.views import Size

SIDES = st.integers(1, 200)


def picture(height: int, width: int, seed: int = 0, *, hard: bool = False) -> NDArray[np.uint8]:
    """Noise; with hard edges it is black and white, which reaches over both ends of the range."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if hard else pixels


def assert_both_equal(pixels: NDArray[np.uint8], height: int, width: int) -> None:
    assert tensors.imported_torch() is torch
    expected = resize(pixels, Size(height=height, width=width))
    got = resample.resample(pixels, height, width)
    assert (got.dtype, got.shape) == (np.uint8, (height, width, 3))
    assert got.flags.c_contiguous
    assert np.array_equal(got, expected), (pixels.shape, height, width)


@given(SIDES, SIDES, SIDES, SIDES, st.booleans())
@example(3, 200, 190, 2, True)
def test_pixels_are_those_of_torch(height: int, width: int, to_height: int, to_width: int, hard: bool) -> None:
    assert_both_equal(picture(height, width, hard=hard), to_height, to_width)


@pytest.mark.parametrize(
    ("height", "width", "to_height", "to_width"),
    [
        pytest.param(1, 1, 28, 28, id="one pixel"),
        pytest.param(600, 400, 560, 364, id="a receipt"),
        pytest.param(40, 56, 40, 448, id="one axis alone"),
        pytest.param(1200, 1, 60, 1, id="twenty times less"),
        pytest.param(4, 20_000, 56, 168, id="a strip, whose matrices are not kept"),
        pytest.param(2, 90_000, 28, 28, id="three thousand times less"),
    ],
)
def test_any_proportion_has_the_pixels_of_torch(height: int, width: int, to_height: int, to_width: int) -> None:
    for hard in (False, True):
        assert_both_equal(picture(height, width, hard=hard), to_height, to_width)


def test_what_four_bytes_cannot_sum_up_is_summed_in_eight() -> None:
    kinds = [resample._axis_weights(size, 100)[2] for size in (30, 100, 250, 390, 900)]
    assert kinds == [np.float32] * 4 + [np.float64]


@pytest.mark.parametrize("layout", ["read-only", "strided", "flipped"])
@pytest.mark.parametrize("has_torch", [True, False])
def test_any_layout_of_memory_will_do(layout: str, has_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture(30, 50)
    expected = resize(pixels, Size(height=45, width=20))
    if not has_torch:
        monkeypatch.setattr(image, "imported_torch", lambda: None)
    given = pixels.copy()
    if layout == "read-only":
        given.flags.writeable = False
    elif layout == "strided":
        given = np.repeat(pixels, 2, axis=1)[:, ::2]
    elif layout == "flipped":
        given = pixels[::-1].copy()[::-1]
    assert np.array_equal(resize(given, Size(height=45, width=20)), expected)
    assert np.array_equal(given, pixels)


def test_torch_in_the_middle_of_its_import_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, size = picture(30, 50), Size(height=45, width=20)
    expected = resize(pixels, size)
    whole = vars(torch)
    begun = [
        SimpleNamespace(),
        SimpleNamespace(Tensor=torch.Tensor, nn=SimpleNamespace()),
        SimpleNamespace(**(whole | {"__spec__": SimpleNamespace(_initializing=True)})),
    ]
    for module in begun:
        monkeypatch.setitem(sys.modules, "torch", module)
        assert tensors.imported_torch() is None
        assert np.array_equal(resize(pixels, size), expected)
        assert tensors.is_tensor(torch.zeros(1)) == hasattr(module, "Tensor")


PROMPTS = """
import sys
import numpy as np
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.branch_points import branch_points

processor = Processor.from_directory(sys.argv[1])
picture = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
parts = [{"type": "image", "image": picture}, {"type": "video", "video": picture[None].repeat(2, 0), "fps": 1}]
inputs = processor([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}], downsample_mode="auto")
assert branch_points(inputs.input_ids, processor.tokenizer)
assert "torch" not in sys.modules
print(inputs.patches.sum())
"""


def test_pictures_become_patches_without_torch() -> None:
    from pocketvlm.model.hub import resolve
    from pocketvlm.processing.processor import Processor

    directory = resolve("nano").path
    command = [sys.executable, "-c", PROMPTS, str(directory)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    pixels = picture(500, 700)
    parts = [{"type": "image", "image": pixels}, {"type": "video", "video": pixels[None].repeat(2, 0), "fps": 1}]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}
    here = Processor.from_directory(directory)([message], downsample_mode="auto")
    assert int(found.stdout) == here.patches.sum()
