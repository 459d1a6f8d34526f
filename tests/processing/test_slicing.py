from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.config import ImageConfig
from pocketvlm.config_ranges import MAX_VIEW_PATCHES
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.patches.slicing import max_view_patches, plan_views
from pocketvlm.views import Size

CONFIG = ImageConfig()
CHECKPOINT = ImageConfig(four_x_rounding="checkpoint")

# height, width, then tokens at: 16x with 9 slices, 16x with 36, 4x with 9 (rounding 2), 4x with 9 (rounding 4).
TABLE = [
    (224, 224, 64, 64, 256, 256),
    (448, 448, 64, 64, 256, 256),
    (64, 96, 70, 70, 260, 280),
    (896, 896, 320, 320, 1280, 1280),
    (1344, 1344, 640, 640, 2560, 2560),
    (1792, 1792, 640, 1088, 2560, 2560),
    (3136, 3136, 640, 2368, 2560, 2560),
    (1080, 1920, 578, 822, 2292, 2312),
    (720, 1280, 444, 444, 1782, 1776),
    (900, 1200, 447, 447, 1782, 1788),
    (1200, 600, 276, 276, 1033, 1104),
    (820, 1084, 441, 441, 1782, 1764),
]
sides = st.integers(1, 8000)
modes = st.sampled_from(["16x", "4x"])
sizes = st.builds(lambda height, width: Size(height=height, width=width), sides, sides)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}x{row[1]}")
def test_published_token_counts(row: tuple[int, ...]) -> None:
    size = Size(height=row[0], width=row[1])
    got = (
        plan_views(size, CONFIG, "16x", 9).visual_tokens,
        plan_views(size, CONFIG, "16x", 36).visual_tokens,
        plan_views(size, CONFIG, "4x", 9).visual_tokens,
        plan_views(size, CHECKPOINT, "4x", 9).visual_tokens,
    )
    assert got == row[2:]


@pytest.mark.parametrize(("height", "width", "grid"), [(1080, 1920, (2, 4)), (720, 1280, (2, 3)), (1344, 1344, (3, 3))])
def test_grid_is_rows_then_columns(height: int, width: int, grid: tuple[int, int]) -> None:
    assert plan_views(Size(height=height, width=width), CONFIG).grid == grid
    assert plan_views(Size(height=width, width=height), CONFIG).grid == grid[::-1]


def test_height_and_width_are_not_interchangeable() -> None:
    assert plan_views(Size(height=820, width=1084), CONFIG).visual_tokens == 441
    assert plan_views(Size(height=1084, width=820), CONFIG).visual_tokens == 495


def test_small_picture_grows_to_a_whole_view() -> None:
    assert plan_views(Size(height=1, width=1), CONFIG).overview == Size(height=448, width=448)


def test_tie_between_grids_goes_to_more_rows() -> None:
    # Two slices of a square: 1 x 2 and 2 x 1 are equally far from it.
    assert plan_views(Size(height=600, width=600), CONFIG, max_slice_nums=2).grid == (2, 1)


def test_slice_mode_off_means_overview_only() -> None:
    plan = plan_views(Size(height=2000, width=1000), ImageConfig(slice_mode=False))
    assert (plan.grid, plan.refined, len(plan.views)) == (None, None, 1)


@given(size=sizes, mode=modes, limit=st.integers(1, 60), rounding=st.sampled_from([CONFIG, CHECKPOINT]))
def test_plan_is_consistent(size: Size, mode: str, limit: int, rounding: ImageConfig) -> None:
    plan = plan_views(size, rounding, mode, limit)  # type: ignore[arg-type]
    factor = rounding.rounding_factor(mode)  # type: ignore[arg-type]
    slices = plan.grid[0] * plan.grid[1] if plan.grid else 0
    assert slices <= limit
    assert slices != 1
    assert len(plan.views) == 1 + slices
    assert plan.patches == sum(view.size.height * view.size.width for view in plan.views)
    for view in plan.views:
        assert view.downsample_mode == mode
        assert view.size.height % factor == 0
        assert view.size.width % factor == 0
        assert 0 < view.patches <= MAX_VIEW_PATCHES
    overview = plan.views[0].size
    assert (overview.height * 14, overview.width * 14) == (plan.overview.height, plan.overview.width)
    assert (plan.refined is None) == (plan.grid is None)
    if plan.grid and plan.refined:
        piece = plan.views[1].size
        assert set(plan.views[1:]) == {plan.views[1]}
        rows, columns = plan.grid
        assert (piece.height * 14 * rows, piece.width * 14 * columns) == (plan.refined.height, plan.refined.width)


@given(size=sizes, limit=st.integers(1, 60))
def test_checkpoint_rounding_only_changes_4x(size: Size, limit: int) -> None:
    assert plan_views(size, CONFIG, "16x", limit) == plan_views(size, CHECKPOINT, "16x", limit)
    four, sixteen = plan_views(size, CHECKPOINT, "4x", limit), plan_views(size, CHECKPOINT, "16x", limit)
    assert [view.size for view in four.views] == [view.size for view in sixteen.views]
    assert four.visual_tokens == 4 * sixteen.visual_tokens


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, "9"])
def test_max_slice_nums_must_be_a_positive_integer(limit: object) -> None:
    with pytest.raises(ConfigError, match="max_slice_nums"):
        plan_views(Size(height=10, width=10), CONFIG, max_slice_nums=limit)  # type: ignore[arg-type]


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="8x"):
        plan_views(Size(height=10, width=10), CONFIG, "8x")  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-5, 5), (1, 2_000_000)])
def test_impossible_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(MediaError, match="between 1 and"):
        plan_views(Size(height=height, width=width), CONFIG)


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize(("height", "width"), [(1, 20_000), (20_000, 1)])
def test_strips_that_would_choke_the_tower_are_refused(height: int, width: int, mode: str) -> None:
    size = Size(height=height, width=width)
    if mode == "16x":
        with pytest.raises(MediaError, match="too narrow"):
            plan_views(size, CONFIG, "16x")
    else:
        assert plan_views(size, CONFIG, "4x").patches < MAX_VIEW_PATCHES


def test_a_view_may_have_as_many_patches_as_the_tower_takes_and_no_more() -> None:
    strip = plan_views(Size(height=1, width=10_752), CONFIG, max_slice_nums=1)
    assert strip.views[0].patches == MAX_VIEW_PATCHES == 4 * 3072
    with pytest.raises(MediaError, match="12304 patches, at most 12288"):
        plan_views(Size(height=1, width=10_766), CONFIG, max_slice_nums=1)


@pytest.mark.parametrize(("resolution", "most"), [(448, 12_288), (224, 3072), (56, 1024), (896, 12_288)])
def test_a_model_of_smaller_views_takes_shorter_strips(resolution: int, most: int) -> None:
    config = replace(CONFIG, scale_resolution=resolution)
    assert max_view_patches(config) == most
    if resolution == 224:
        assert plan_views(Size(height=1, width=10_752), config, "4x", 1).views[0].patches == most
        with pytest.raises(MediaError, match=f"at most {most}"):
            plan_views(Size(height=1, width=11_000), config, "4x", 1)


def test_strip_whose_height_rounds_to_nothing_is_the_smallest_view() -> None:
    plan = plan_views(Size(height=1, width=300_000), CONFIG, max_slice_nums=1)
    assert plan.overview == Size(height=56, width=56)


def test_huge_slice_counts_are_refused_at_once() -> None:
    with pytest.raises(MediaError, match="lower max_slice_nums"):
        plan_views(Size(height=1_000_000, width=1_000_000), CONFIG, max_slice_nums=10**9)
