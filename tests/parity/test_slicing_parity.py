"""Grid, view sizes and tokens equal the reference's, bit for bit in their float decisions."""

from __future__ import annotations

import random

import pytest
import reference

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size

PRIMES = (2, 3, 5, 7, 13, 31, 127, 449, 897, 1009, 1343, 1777, 3137, 4801, 6007, 7919)


def _sizes(count: int) -> list[Size]:
    """`count` sizes from 1 x 1 to 8000 x 8000: uniform, small, primes, strips, and both sides of round numbers."""
    rng = random.Random(20240607)
    sizes = [(1, 1), (1, 8000), (8000, 1), (8000, 8000), (448, 448), (448, 449), (7919, 7907)]
    makers = (
        lambda: (rng.randint(1, 8000), rng.randint(1, 8000)),
        lambda: (rng.randint(1, 500), rng.randint(1, 500)),
        lambda: (rng.choice(PRIMES), rng.choice(PRIMES)),
        lambda: (rng.randint(1, 20), rng.randint(1000, 8000)),
        lambda: (224 * rng.randint(1, 35) + rng.randint(-1, 1), 224 * rng.randint(1, 35) + rng.randint(-1, 1)),
    )
    while len(sizes) < count:
        height, width = makers[len(sizes) % len(makers)]()
        sizes.append((height, width) if rng.random() < 0.5 else (width, height))
    return [Size(height=height, width=width) for height, width in sizes]


SIZES = _sizes(2000)


def _reference_plan(processor: object, size: Size, mode: str, limit: int, config: ImageConfig) -> tuple[object, ...]:
    scale, patch = config.scale_resolution, config.patch_size
    pair = (size.height, size.width)
    grid = processor.get_sliced_grid(pair, limit, scale)
    overview = processor.find_best_resize(pair, scale, patch, downsample_mode=mode, allow_upscale=grid is None)
    refined = None
    if grid:
        refined = processor.get_refine_size(pair, grid, scale, patch, downsample_mode=mode, allow_upscale=True)
    views = [(overview[0] // patch, overview[1] // patch)]
    if grid:
        rows, columns = grid
        views += [(refined[0] // rows // patch, refined[1] // columns // patch)] * (rows * columns)
    tokens = sum(height * width for height, width in views) // (16 if mode == "16x" else 4)
    return tuple(grid) if grid else None, overview, refined, views, tokens


def _our_plan(size: Size, mode: DownsampleMode, limit: int, config: ImageConfig) -> tuple[object, ...]:
    plan = plan_views(size, config, mode, limit)
    refined = (plan.refined.height, plan.refined.width) if plan.refined else None
    views = [(view.size.height, view.size.width) for view in plan.views]
    return plan.grid, (plan.overview.height, plan.overview.width), refined, views, plan.visual_tokens


@pytest.mark.parametrize("limit", [1, 9, 36])
@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_two_thousand_sizes(mode: DownsampleMode, limit: int) -> None:
    processor, config = reference.image_processor(), ImageConfig()
    different = [
        size
        for size in SIZES
        if _our_plan(size, mode, limit, config) != _reference_plan(processor, size, mode, limit, config)
    ]
    assert different == []


@pytest.mark.parametrize(("scale", "patch"), [(448, 16), (224, 14), (112, 8), (980, 14)])
def test_other_scales_and_patches(scale: int, patch: int) -> None:
    processor, config = reference.image_processor(), ImageConfig(scale_resolution=scale, patch_size=patch)
    rng = random.Random(scale)
    for _ in range(300):
        size = Size(height=rng.randint(20, 3000), width=rng.randint(20, 3000))
        limit = rng.randint(1, 40)
        mode: DownsampleMode = rng.choice(["16x", "4x"])
        assert _our_plan(size, mode, limit, config) == _reference_plan(processor, size, mode, limit, config), size


def test_video_processor_cuts_like_the_image_processor() -> None:
    processor, config = reference.video_processor(), ImageConfig()
    for size in SIZES[:200]:
        assert _our_plan(size, "4x", 9, config) == _reference_plan(processor, size, "4x", 9, config), size


def test_vanishing_height_matches() -> None:
    processor, config = reference.image_processor(), ImageConfig()
    for limit in (1, 4, 5):
        size = Size(height=1, width=300_000 if limit == 1 else 1_000)
        assert _our_plan(size, "16x", limit, config) == _reference_plan(processor, size, "16x", limit, config)
