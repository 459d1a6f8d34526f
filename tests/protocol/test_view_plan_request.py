"""The body of POST /v1/view_plan, and its response."""

from __future__ import annotations

from typing import Any

import pytest

from pocketvlm.api.view_plan import plan
from pocketvlm.errors import ConfigError
from pocketvlm.protocol.view_plan import parse_view_plan, view_plan_response


def test_what_is_given_is_taken_and_the_rest_is_the_models() -> None:
    options = {"max_slice_nums": 4, "auto_token_budget": 2}
    body = {"model": "m", "images": ["data:,x"], "downsample_modes": ["16x", "auto"], "mm_processor_kwargs": options}
    asked = parse_view_plan(body)
    assert (asked.model, asked.images, asked.modes) == ("m", ("data:,x",), ("16x", "auto"))
    assert (asked.max_slice_nums, asked.auto_token_budget) == (4, 2)
    asked = parse_view_plan({"images": ["data:,x"], "mm_processor_kwargs": {"downsample_mode": "4x"}})
    assert asked.modes == ("4x",)
    assert parse_view_plan({"images": ["a"], "model": None}).modes is None


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ([], "body"),
        ({}, "images"),
        ({"images": []}, "images"),
        ({"images": "data:,x"}, "images"),
        ({"images": ["a"], "videos": []}, "videos"),
        ({"images": ["a"], "downsample_modes": []}, "downsample_modes"),
        ({"images": ["a"], "downsample_modes": ["16x", "16x"]}, "downsample_modes"),
        ({"images": ["a"], "downsample_modes": ["2x"]}, "2x"),
        ({"images": ["a"], "downsample_modes": ["4x"], "mm_processor_kwargs": {"downsample_mode": "4x"}}, "both"),
        ({"images": ["a"], "mm_processor_kwargs": {"max_slice_nums": 0}}, "max_slice_nums"),
        ({"images": ["a"], "mm_processor_kwargs": {"max_num_frames": 3}}, "max_num_frames"),
        ({"images": ["a"], "mm_processor_kwargs": {"auto_token_budget": 9, "downsample_mode": "auto"}}, "9"),
        ({"images": ["a"], "mm_processor_kwargs": {"auto_token_budget": 2, "downsample_mode": "4x"}}, "auto"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(body: Any, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse_view_plan(body)


@pytest.mark.parametrize("size", [(392, 280), (1344, 1344), (448, 448), (500, 3000)])
def test_boxes_of_slices_tile_the_picture_and_tokens_add_up(size: tuple[int, int]) -> None:
    found = plan(*size, "4x")
    (image,) = view_plan_response([{"4x": found}], model="m")["images"]
    (entry,) = image["plans"]
    overview, *slices = entry["views"]
    assert overview["box"] == (0, 0, size[1], size[0])
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in (one["box"] for one in slices))
    assert area == pytest.approx(size[0] * size[1] if found.grid else 0)
    for number, one in enumerate(slices):
        row, column = divmod(number, found.grid[1] if found.grid else 1)
        left, top, right, bottom = one["box"]
        assert (left, top) == pytest.approx((column * (right - left), row * (bottom - top)))
    assert sum(one["visual_tokens"] for one in entry["views"]) == entry["visual_tokens"] == found.visual_tokens
    assert all(one["rows"] * one["columns"] == 4 * one["visual_tokens"] for one in entry["views"])
