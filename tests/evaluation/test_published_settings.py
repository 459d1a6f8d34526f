from __future__ import annotations

import io
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.config import ImageConfig
from pocketvlm.errors import MediaError
from pocketvlm.evaluation.public_sets import PUBLIC_SETS
from pocketvlm.evaluation.settings import UPSIZE_AREA, UPSIZED_SETS, PublishedSettings, upsize, upsize_size
from pocketvlm.evaluation.tasks import Example, Media
from pocketvlm.views import Size

sides = st.integers(1, 4000)


def picture(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(name: str, media: Media, task: str = "docvqa") -> Example:
    return Example(name, task, (media,), "?", ("a",), "anls")


@given(height=sides, width=sides, seed=st.none() | st.integers(0, 99))
def test_a_picture_grows_with_its_shape_kept_and_never_over_the_area(height: int, width: int, seed: int | None) -> None:
    size = Size(height=height, width=width)
    larger = upsize_size(size, None if seed is None else random.Random(seed))
    if size.area >= UPSIZE_AREA:
        assert larger == size
        return
    assert width <= larger.width
    assert height <= larger.height
    assert larger.area <= UPSIZE_AREA
    assert larger.width <= width * math.sqrt(UPSIZE_AREA / size.area)
    assert 0 <= larger.width / width * height - larger.height < 1  # rounded down


@given(height=st.integers(50, 1300), width=st.integers(50, 1300))
def test_without_a_draw_a_picture_grows_as_far_as_it_goes(height: int, width: int) -> None:
    larger = upsize_size(Size(height=height, width=width))
    wider = larger.width + 1
    assert wider * wider * height >= UPSIZE_AREA * width


def test_drawn_widths_reach_from_the_picture_s_own_to_the_widest() -> None:
    draw = random.Random(0)
    widths = {upsize_size(Size(height=1300, width=1340), draw).width for _ in range(1000)}
    assert widths == set(range(1340, upsize_size(Size(height=1300, width=1340)).width + 1))


def test_enlarging_is_pillow_s_bicubic_up_to_rounding() -> None:
    body = picture(30, 50)
    enlarged = upsize(body, random.Random(1))
    height, width = enlarged.shape[:2]
    reference = np.asarray(Image.open(io.BytesIO(body)).resize((width, height), Image.Resampling.BICUBIC))
    assert np.abs(enlarged.astype(int) - reference).max() <= 2


def test_large_pictures_stay_as_they_are() -> None:
    pixels = np.zeros((1344, 1344, 3), np.uint8)
    assert upsize(pixels) is pixels or np.array_equal(upsize(pixels), pixels)


def test_the_size_of_a_picture_depends_on_its_name_and_the_seed_only() -> None:
    body = picture(20, 30)
    settings = PublishedSettings()

    def size(name: str, chosen: PublishedSettings = settings) -> tuple[int, ...]:
        (shown,) = chosen.media(example(name, body))
        assert isinstance(shown, np.ndarray)
        return shown.shape

    assert size("7") == size("7")
    assert len({size(str(n)) for n in range(8)}) > 4
    assert size("7") != size("7", PublishedSettings(seed=1))
    assert size("7", PublishedSettings(seed=None)) == (1097, 1646, 3)


def test_only_pictures_of_the_sets_that_the_publication_enlarges_are_enlarged() -> None:
    body = picture(20, 30)
    assert set(PUBLIC_SETS) >= UPSIZED_SETS
    for task in PUBLIC_SETS:
        (shown,) = PublishedSettings().media(example("1", body, task))
        assert (shown is body) == (task not in UPSIZED_SETS)
        assert PublishedSettings(use_upsize=False).media(example("1", body, task)) == (body,)


def test_a_picture_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(MediaError, match="does not exist"):
        PublishedSettings().media(example("1", Path("nowhere.png")))


def test_the_options_are_those_of_the_published_evaluation() -> None:
    settings = PublishedSettings()
    options = settings.options()
    assert options == {
        "downsample_mode": "4x",
        "max_slice_nums": 9,
        "video_max_slice_nums": 1,
        "use_video_id": False,
        "num_beams": 3,
        "repetition_penalty": 1.2,
        "temperature": 0.0,
        "max_tokens": 8192,
    }
    assert ImageConfig(four_x_rounding=settings.four_x_rounding).rounding_factor("4x") == 4
