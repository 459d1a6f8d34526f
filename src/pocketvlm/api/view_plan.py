"""How a picture would be cut, and what it would cost: no weights are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pocketvlm.config import (
    DownsampleMode,
    ImageConfig,
    ModelConfig,
    check_auto_token_budget,
    check_downsample_mode,
)
from pocketvlm.errors import ConfigError
from pocketvlm.model.flops import vision_flops
from pocketvlm.processing.media.load_image import ImageSource, load_image
from pocketvlm.processing.patches.image import encode_image
from pocketvlm.processing.patches.rates import max_token_views
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size, View


@dataclass(frozen=True)
class ViewPlan:
    """How a picture of one size is seen.

    Attributes:
        height, width: of the picture, in pixels.
        grid: (rows, columns) of slices, or None when the overview is the only view.
        views: (height, width) of each view in patches, overview first, then slices row by row.
        patches: of all views.
        visual_tokens: prompt tokens that the picture takes; with "auto" and without pixels, the most it can take.
        vision_flops: FLOPs (two a multiply-add) of tower and merger for these tokens.
        vision_flops_uncompressed: the same views without early compression.
        visual_tokens_min: the fewest tokens it can take; `visual_tokens`, unless only the pixels can tell.
        rates: "16x" or "4x" for each view; None when only the pixels can tell.
    """

    height: int
    width: int
    grid: tuple[int, int] | None
    views: tuple[tuple[int, int], ...]
    patches: int
    visual_tokens: int
    vision_flops: int
    vision_flops_uncompressed: int
    visual_tokens_min: int
    rates: tuple[DownsampleMode, ...] | None

    @property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """What each view shows: (left, top, right, bottom) in pixels of the picture."""
        rows, columns = self.grid or (0, 0)
        high, wide = self.height / max(rows, 1), self.width / max(columns, 1)
        slices = (
            (column * wide, row * high, (column + 1) * wide, (row + 1) * high)
            for row in range(rows)
            for column in range(columns)
        )
        return ((0.0, 0.0, float(self.width), float(self.height)), *slices)


def plan(
    height: int,
    width: int,
    downsample_mode: str = "16x",
    max_slice_nums: int = 9,
    *,
    auto_token_budget: float | None = None,
    model_config: ModelConfig | None = None,
    image_config: ImageConfig | None = None,
) -> ViewPlan:
    """What the model would make of a picture of `height` x `width` pixels, without reading one.

    Args:
        downsample_mode: "16x", "4x" or "auto", where only the pixels tell: bounds are given then, see `ViewPlan` and
            `plan_image`.
        max_slice_nums: most slices beside the overview.
        auto_token_budget: most visual tokens with "auto", as a multiple of those of 16x; 1.5 when not given.
        model_config, image_config: the published MiniCPM-V 4.6 when not given.

    Raises:
        ConfigError: an option that does not exist.
        MediaError: a size that no view can be made of.
    """
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r} is not a positive number of pixels")
    mode = check_downsample_mode(downsample_mode)
    budget = check_auto_token_budget(auto_token_budget, mode == "auto")
    size = Size(height=height, width=width)
    slices = plan_views(size, image_config or ImageConfig(), mode, max_slice_nums)
    if mode != "auto":
        return plan_of(size, slices.grid, slices.views, model_config)
    costliest = plan_of(size, slices.grid, max_token_views(slices.views, budget), model_config)
    if costliest.visual_tokens == slices.visual_tokens:  # the budget is too small for any view, whatever its pixels
        return costliest
    return replace(costliest, visual_tokens_min=slices.visual_tokens, rates=None)


def plan_image(
    image: ImageSource,
    downsample_mode: str = "16x",
    max_slice_nums: int = 9,
    *,
    auto_token_budget: float | None = None,
    model_config: ModelConfig | None = None,
    image_config: ImageConfig | None = None,
) -> ViewPlan:
    """As `plan`, for a picture whose pixels are at hand: with "auto", the rates they lead to.

    Args:
        image: a path, URL, bytes, PIL image or array.

    Raises:
        ConfigError, MediaError: as `plan`; the picture cannot be read.
    """
    mode, pixels = check_downsample_mode(downsample_mode), load_image(image)
    encoded = encode_image(
        pixels, image_config or ImageConfig(), mode, max_slice_nums, auto_token_budget=auto_token_budget
    )
    return plan_of(Size(height=pixels.shape[0], width=pixels.shape[1]), encoded.grid, encoded.views, model_config)


def plan_of(
    size: Size, grid: tuple[int, int] | None, views: Sequence[View], model_config: ModelConfig | None
) -> ViewPlan:
    """The plan of a picture of this size that is cut like this."""
    tokens, model_config = sum(view.visual_tokens for view in views), model_config or ModelConfig()
    return ViewPlan(
        height=size.height,
        width=size.width,
        grid=grid,
        views=tuple((v.size.height, v.size.width) for v in views),
        patches=sum(view.patches for view in views),
        visual_tokens=tokens,
        vision_flops=vision_flops(model_config, views),
        vision_flops_uncompressed=vision_flops(model_config, views, early_compression=False),
        visual_tokens_min=tokens,
        rates=tuple(view.downsample_mode for view in views),
    )
