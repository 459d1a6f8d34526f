"""Which views a picture becomes: a size in pixels → overview, grid of slices, and the patches and tokens of each.

Numbers only, no pixels: `plan`, the prompt and the resize all ask here, so they cannot disagree. Every float operation
is in the reference's order (`MiniCPMV4_6ImageProcessor` of transformers 5.23), because roundings decide grid and size.

- One picture of `ratio` = area / scale_resolution² wants ceil(ratio) slices, at most `max_slice_nums`; one means none.
- The grid is the one whose shape is nearest the picture's (on a log scale) among one slice fewer, as many, one more.
- Each view is scaled to the area scale_resolution² and its sides rounded to the patches that compression needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pocketvlm.config import DownsampleMode, DownsampleOption, ImageConfig, check_downsample_mode
from pocketvlm.config_ranges import MAX_VIEW_PATCHES
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.views import Size, View

# Limits of a plan, with `max_view_patches`, so that no size makes the tower choke. The reference has none: a 1 x 20000
# strip becomes one view of 17,136 patches there. A 1 x 8000 strip, the worst that is still planned, has 11,456.
MAX_SIDE = 1_000_000
MAX_PATCHES = 2**20


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """How one picture is cut.

    Attributes:
        image: the picture, in pixels.
        grid: (rows, columns) of slices, or None when the overview is all there is.
        overview: the whole picture resized, in pixels.
        refined: the whole picture resized for cutting into slices, in pixels; None without a grid.
        views: the views in patches: overview first, then slices row by row.
    """

    image: Size
    grid: tuple[int, int] | None
    overview: Size
    refined: Size | None
    views: tuple[View, ...]

    @property
    def patches(self) -> int:
        """Patches of all views together."""
        return sum(view.patches for view in self.views)

    @property
    def visual_tokens(self) -> int:
        """Tokens of all views together."""
        return sum(view.visual_tokens for view in self.views)


def plan_views(
    size: Size,
    config: ImageConfig,
    downsample_mode: DownsampleOption = "16x",
    max_slice_nums: int | None = None,
) -> SlicePlan:
    """Decide the views of a picture.

    Args:
        size: height and width in pixels.
        config: how the model wants its pictures.
        downsample_mode: "16x" or "4x", for every view; "auto" plans as "16x", in sizes that suit both rates, and leaves
            it to `processing.patches.rates` to raise views to 4x.
        max_slice_nums: most slices beside the overview (any integer >= 1; 1 means overview only); `config`'s when None.

    Raises:
        ConfigError: an unknown mode, or a `max_slice_nums` that is not a positive integer.
        MediaError: a size without area, or so large or narrow that a view would have over `max_view_patches` patches or
            the picture over `MAX_PATCHES`.
    """
    mode = check_downsample_mode(downsample_mode)
    limit = config.max_slice_nums if max_slice_nums is None else max_slice_nums
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"max_slice_nums={limit!r} is not a positive integer")
    if not (0 < size.height <= MAX_SIDE and 0 < size.width <= MAX_SIDE):
        raise MediaError(
            f"The picture is {size.height} x {size.width} pixels (height x width)",
            hint=f"Each side must be between 1 and {MAX_SIDE} pixels.",
        )

    unit = config.patch_size * config.rounding_factor(mode)
    grid = _best_grid(size, limit, config.scale_resolution) if config.slice_mode else None
    # The reference scales the overview of a sliced picture only down, which is no condition: a sliced one is larger.
    overview = _view_size(size.height, size.width, config.scale_resolution, unit)
    pieces = [(overview, 1)]
    refined = None
    if grid is not None:
        rows, columns = grid
        height = _round_to(size.height, rows) / rows
        width = _round_to(size.width, columns) / columns
        piece = _view_size(height, width, config.scale_resolution, unit)
        pieces.append((piece, rows * columns))
        refined = Size(height=piece.height * rows, width=piece.width * columns)

    in_patches = [
        (Size(height=piece.height // config.patch_size, width=piece.width // config.patch_size), count)
        for piece, count in pieces
    ]
    _check_patches(size, in_patches, max_view_patches(config))
    rate: DownsampleMode = "4x" if mode == "4x" else "16x"
    views = tuple(View(patches, rate) for patches, count in in_patches for _ in range(count))
    return SlicePlan(image=size, grid=grid, overview=overview, refined=refined, views=views)


def max_view_patches(config: ImageConfig) -> int:
    """Twelve times the patches of a square view, between 1,024 and `MAX_VIEW_PATCHES` (which it is at the true sizes).

    The tower's attention takes time with the square of the patches. A model of smaller views is there to be quick: a
    strip that costs it ten times as long as a page is refused, as it is by the large model.
    """
    square = (config.scale_resolution // config.patch_size) ** 2
    return min(max(12 * square, 1024), MAX_VIEW_PATCHES)


def _check_patches(size: Size, pieces: list[tuple[Size, int]], most: int) -> None:
    """Refuse a plan that is too large before its views are made."""
    largest = max(piece.area for piece, _ in pieces)
    if largest > most:
        raise MediaError(
            f"A picture of {size.height} x {size.width} pixels (height x width) is too narrow: one view would have "
            f"{largest} patches, at most {most} are possible",
            hint="Cut it into parts that are less elongated.",
        )
    total = sum(piece.area * count for piece, count in pieces)
    if total > MAX_PATCHES:
        raise MediaError(
            f"A picture of {size.height} x {size.width} pixels (height x width) would have {total} patches, "
            f"at most {MAX_PATCHES} are possible",
            hint="Make it smaller or lower max_slice_nums.",
        )


def _round_to(length: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `length` (halves to even multiples), at least one."""
    return max(round(length / divisor), 1) * divisor


def _view_size(height: float, width: float, scale_resolution: int, unit: int) -> Size:
    """Pixels of a view of about scale_resolution² with the given shape, each side a multiple of `unit` pixels."""
    aspect = width / height
    scaled_height = int(scale_resolution / math.sqrt(aspect))
    # From the truncated height, as the reference does: a strip over 448² times as wide as high ends at height 0, and
    # with it at width 0, so it becomes the smallest view there is.
    scaled_width = int(scaled_height * aspect)
    return Size(height=_round_to(scaled_height, unit), width=_round_to(scaled_width, unit))


def _best_grid(size: Size, max_slice_nums: int, scale_resolution: int) -> tuple[int, int] | None:
    """(rows, columns) of slices, or None for a picture that is small enough as it is."""
    ratio = size.width * size.height / (scale_resolution * scale_resolution)
    wanted = min(math.ceil(ratio), max_slice_nums)
    if wanted <= 1:
        return None
    log_aspect = math.log(size.width / size.height)
    counts = (n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= max_slice_nums)
    candidates = ((rows, n // rows) for n in counts for rows in _divisors(n))
    # Nearest shape; on a tie more rows; `min` keeps the first, so fewer slices after that.
    return min(candidates, key=lambda grid: (abs(log_aspect - math.log(grid[1] / grid[0])), -grid[0]))


def _divisors(number: int) -> Iterator[int]:
    for low in range(1, math.isqrt(number) + 1):
        if number % low == 0:
            yield low
            if low * low != number:
                yield number // low
