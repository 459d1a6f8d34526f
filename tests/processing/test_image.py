from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.pictures import content_of

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.model.vision.pixels import normalise
from pocketvlm.processing.patches.image import encode_image, encode_images, resize
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size

CONFIG = ImageConfig(scale_resolution=112)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_patches_are_row_major_inside_views_and_views_follow_the_grid() -> None:
    config = ImageConfig(scale_resolution=56, patch_size=14)
    pixels = picture(112, 168)  # 2 x 3 slices of exactly 56 x 56: cut, not resized
    got = encode_image(pixels, config)
    assert got.grid == (2, 3)
    assert got.patches.shape == (got.views[0].patches + 6 * 16, 14, 14, 3)
    assert got.patches.dtype == np.uint8
    patches = got.patches[got.views[0].patches :].reshape(2, 3, 4, 4, 14, 14, 3)
    for row in range(2):
        for column in range(3):
            view = pixels[row * 56 : row * 56 + 56, column * 56 : column * 56 + 56]
            for i in range(4):
                for j in range(4):
                    expected = view[i * 14 : i * 14 + 14, j * 14 : j * 14 + 14]
                    assert np.array_equal(patches[row, column, i, j], expected)


def test_views_are_those_of_the_plan() -> None:
    got = encode_image(picture(300, 200), CONFIG, "4x", 5)
    plan = plan_views(Size(height=300, width=200), CONFIG, "4x", 5)
    assert (got.views, got.grid, got.visual_tokens) == (plan.views, plan.grid, plan.visual_tokens)
    assert len(got.patches) == plan.patches


@pytest.mark.parametrize("kind", ["array", "read-only", "strided", "flipped", "tensor", "channels-first tensor"])
def test_any_memory_layout_gives_the_same_patches(kind: str) -> None:
    pixels = picture(150, 170)
    given: np.ndarray | torch.Tensor = pixels.copy()
    if kind == "read-only":
        given.flags.writeable = False
    elif kind == "strided":
        given = np.repeat(pixels, 2, axis=1)[:, ::2]
    elif kind == "flipped":
        given = pixels[::-1].copy()[::-1]
    elif kind == "tensor":
        given = torch.from_numpy(given)
    elif kind == "channels-first tensor":
        given = torch.from_numpy(given).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expected = encode_image(pixels, CONFIG)
    got = encode_image(given, CONFIG)
    assert np.array_equal(got.patches, expected.patches)


def test_input_is_not_written_to() -> None:
    pixels = picture(112, 112)
    before = pixels.copy()
    encode_image(pixels, CONFIG).patches.fill(0)
    assert np.array_equal(pixels, before)


def test_several_pictures_in_parallel_keep_their_order() -> None:
    pictures = [picture(100 + 30 * i, 220 - 20 * i, i) for i in range(6)]
    alone = [content_of(encode_image(p, CONFIG)) for p in pictures]
    for workers in (None, 1, 3):
        together = encode_images(pictures, CONFIG, workers=workers)
        assert [content_of(views) for views in together] == alone


def test_loading_happens_once_a_source_and_its_error_comes_through() -> None:
    seen: list[int] = []

    def load(seed: int) -> np.ndarray:
        seen.append(seed)
        if seed == 99:
            raise MediaError("no such picture")
        return picture(60, 60, seed)

    assert len(encode_images([1, 2, 3], CONFIG, load=load, workers=2)) == 3
    assert sorted(seen) == [1, 2, 3]
    with pytest.raises(MediaError, match="no such picture"):
        encode_images([1, 99], CONFIG, load=load, workers=2)


def test_no_pictures_and_no_workers() -> None:
    assert encode_images([], CONFIG) == []
    with pytest.raises(ConfigError, match="workers"):
        encode_images([picture(9, 9)], CONFIG, workers=0)


def test_the_callers_torch_threads_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    encode_images([picture(200, 200, i) for i in range(3)], CONFIG, workers=3)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        torch.zeros(5, 5, 3),
        torch.zeros(0, 5, 3, dtype=torch.uint8),
        "picture.png",
        None,
    ],
    ids=["flat", "four channels", "channels first", "floats", "float tensor", "empty", "path", "None"],
)
def test_other_inputs_are_refused(pixels: object) -> None:
    with pytest.raises(MediaError):
        encode_image(pixels, CONFIG)  # type: ignore[arg-type]


def test_resize_to_the_same_size_is_the_picture_itself() -> None:
    pixels = picture(20, 30)
    assert resize(pixels, Size(height=20, width=30)) is pixels


def test_resize_keeps_height_and_width_apart() -> None:
    # Each row of one grey.
    rows = np.broadcast_to(np.arange(0, 240, 12, dtype=np.uint8)[:, None, None], (20, 30, 3))
    resized = resize(rows, Size(height=40, width=15))
    assert resized.shape == (40, 15, 3)
    assert (resized == resized[:, :1]).all()
    assert len(np.unique(resized[:, 0, 0])) > 20


def test_normalise_maps_black_to_minus_one_and_white_to_one() -> None:
    patches = torch.tensor([[[[0, 255, 127]]]], dtype=torch.uint8)
    assert normalise(patches, CONFIG).tolist() == [[-1.0, 1.0, pytest.approx(-0.5 / 127.5)]]
