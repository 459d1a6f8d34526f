"""Pixels of one picture → its uint8 patches, cut as `slicing` planned.

Shapes: H, W pixels of the picture; P patches of all its views; p patch_size.

The pixels are resized in uint8, channels last, with the reference's values bit for bit: by PyTorch's antialiased
bicubic kernel where PyTorch is there anyway (at a third of the time of channels first), else by `resample`, which takes
about ten times as long and spares the seconds of importing it. Views and patches are then one strided copy. Patches
stay uint8 (a quarter of fp32) until the device normalises them.

Threads: the uint8 kernel runs on its calling thread where torch has its AVX2 form (measured: CPU time = wall time with
two intra-op threads), as the products of `resample` do, and the copies are numpy's, also single-threaded. So one thread
a picture holds without `torch.set_num_threads`, which would leak: it is per-thread in OpenMP builds, but threads born
later inherit the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import DownsampleOption, ImageConfig, check_auto_token_budget
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.machine import usable_processors
from pocketvlm.processing.patches.rates import choose_rates, count_fine_patches
from pocketvlm.processing.patches.resample import resample
from pocketvlm.processing.patches.slicing import SlicePlan, plan_views
from pocketvlm.processing.tensors import imported_torch, is_tensor
from pocketvlm.views import Size, View

if TYPE_CHECKING:
    from torch import Tensor

Pixels: TypeAlias = "Tensor | NDArray[np.uint8]"
Source = TypeVar("Source")


@dataclass(frozen=True, slots=True, eq=False)
class ImageViews:
    """One picture (or video frame), ready for the tower.

    Attributes:
        patches: uint8 [P, p, p, 3]: row, column and channel inside a patch; patches row by row inside a view; views
            one after the other, overview first.
        views: sizes (in patches) and compression, in that order.
        grid: (rows, columns) of slices, or None.
        image: the picture, in pixels.
        pages: how many the document has that it is a page of, where somebody wanted to know.
    """

    patches: NDArray[np.uint8]
    views: tuple[View, ...]
    grid: tuple[int, int] | None
    image: Size
    pages: int = 1

    @property
    def visual_tokens(self) -> int:
        """Tokens of all views together."""
        return sum(view.visual_tokens for view in self.views)


@dataclass(frozen=True, slots=True, eq=False)
class CutImage:
    """One picture cut into patches (as those of `ImageViews`) by a plan; with "auto" its rates are still open."""

    patches: NDArray[np.uint8]
    plan: SlicePlan


def encode_image(
    pixels: Pixels,
    config: ImageConfig,
    downsample_mode: DownsampleOption = "16x",
    max_slice_nums: int | None = None,
    *,
    auto_token_budget: float | None = None,
) -> ImageViews:
    """Resize and cut one picture.

    Args:
        pixels: uint8 RGB [H, W, 3], a tensor or an array; never written to.
        config, downsample_mode, max_slice_nums: as for `plan_views`; with "auto" the pixels decide the rate of each
            view, see `processing.patches.rates`.
        auto_token_budget: most visual tokens with "auto", as a multiple of those of 16x; 1.5 when None.

    Raises:
        MediaError: pixels of another type or shape, or a size that `plan_views` refuses.
        ConfigError: an option that `plan_views` refuses, or a budget that cannot be honoured.
    """
    is_auto = downsample_mode == "auto"
    budget = check_auto_token_budget(auto_token_budget, is_auto)
    cut = cut_image(pixels, config, downsample_mode, max_slice_nums)
    (views,) = finish_images([cut], budget if is_auto else None)
    return views


def cut_image(
    pixels: Pixels, config: ImageConfig, downsample_mode: DownsampleOption, max_slice_nums: int | None
) -> CutImage:
    """The first half of `encode_image`: resize and cut."""
    picture = _as_array(pixels)
    size = Size(height=picture.shape[0], width=picture.shape[1])
    plan = plan_views(size, config, downsample_mode, max_slice_nums)
    return CutImage(cut_patches(picture, plan, config.patch_size), plan)


def finish_images(images: Sequence[CutImage], auto_token_budget: float | None = None) -> list[ImageViews]:
    """The second half: the rate of each view.

    Args:
        images: one picture, or all units of a video.
        auto_token_budget: of all `images` together, whose views are then raised to 4x by their pixels; None leaves the
            rates as they were planned.
    """
    views: Sequence[tuple[View, ...]] = [image.plan.views for image in images]
    if auto_token_budget is not None and auto_token_budget > 1:
        views = choose_rates(views, [_scores(image) for image in images], auto_token_budget)
    return [
        ImageViews(image.patches, chosen, image.plan.grid, image.plan.image)
        for image, chosen in zip(images, views, strict=True)
    ]


def _scores(image: CutImage) -> list[int]:
    """The fine print of each view."""
    scores, start = [], 0
    for view in image.plan.views:
        scores.append(count_fine_patches(image.patches[start : start + view.patches]))
        start += view.patches
    return scores


def _same(source: Any) -> Any:
    return source


def encode_images(
    sources: Sequence[Source],
    config: ImageConfig,
    downsample_mode: DownsampleOption = "16x",
    max_slice_nums: int | None = None,
    *,
    auto_token_budget: float | None = None,
    load: Callable[[Source], Pixels] = _same,
    workers: int | None = None,
) -> list[ImageViews]:
    """`encode_image` for several pictures, one thread a picture, results in order.

    Args:
        sources: the pictures, or whatever `load` turns into pixels (decoding takes longer than the rest, so it belongs
            into the same thread; with `load_image` of `processing.media` these are paths, URLs or bytes).
        config, downsample_mode, max_slice_nums: as for `encode_image`.
        auto_token_budget: as for `encode_image`: each picture has it to itself.
        load: called once a source, in a worker.
        workers: threads; by default as many as this process may use processors.

    Raises:
        ConfigError: `workers` below 1, and what `encode_image` and `load` raise, for the first picture at fault.
    """
    encoded = encode_pages(
        sources,
        config,
        downsample_mode,
        max_slice_nums,
        auto_token_budget=auto_token_budget,
        load=lambda source: (load(source),),
        workers=workers,
    )
    return [views for (views,) in encoded]


def encode_pages(
    sources: Sequence[Source],
    config: ImageConfig,
    downsample_mode: DownsampleOption = "16x",
    max_slice_nums: int | None = None,
    *,
    auto_token_budget: float | None = None,
    load: Callable[[Source], Iterable[Pixels]],
    workers: int | None = None,
) -> list[tuple[ImageViews, ...]]:
    """`encode_images` for documents: `load` gives the pages of each source, and each page is a picture.

    The pages of a document are read and cut one after the other, so that the pixels of one are in memory at a time.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers!r} is not a positive integer")

    def encode(source: Source) -> tuple[ImageViews, ...]:
        return tuple(
            encode_image(page, config, downsample_mode, max_slice_nums, auto_token_budget=auto_token_budget)
            for page in load(source)
        )

    count = min(workers or usable_processors(), len(sources))
    if count <= 1:
        return [encode(source) for source in sources]
    with ThreadPoolExecutor(count, thread_name_prefix="pocketvlm-image") as pool:
        return list(pool.map(encode, sources))


def cut_patches(picture: NDArray[np.uint8], plan: SlicePlan, patch_size: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] → uint8 [P, p, p, 3] by `plan`, which must be made for this size."""
    patches = np.empty((plan.patches, patch_size, patch_size, 3), np.uint8)
    first = plan.views[0].patches
    _write_views(resize(picture, plan.overview), (1, 1), patches[:first])
    if plan.grid is not None and plan.refined is not None:
        _write_views(resize(picture, plan.refined), plan.grid, patches[first:])
    return patches


def resize(picture: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] → uint8 [height, width, 3], contiguous; the very same array if it has that size already."""
    if picture.shape[:2] == (size.height, size.width):
        return picture
    picture, torch = np.ascontiguousarray(picture), imported_torch()
    if torch is None:
        return resample(picture, size.height, size.width)
    # Batch axis first, then permute: these strides are unambiguously channels last, so torch keeps them in the result
    # and spares two copies.
    channels_last = torch.from_numpy(_writeable(picture))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        channels_last, size=[size.height, size.width], mode="bicubic", align_corners=False, antialias=True
    )
    contiguous: NDArray[np.uint8] = resized.permute(0, 2, 3, 1)[0].contiguous().numpy()
    return contiguous


def _write_views(picture: NDArray[np.uint8], grid: tuple[int, int], patches: NDArray[np.uint8]) -> None:
    """Cut a picture into rows x columns views and these into patches, in place: patches [P, p, p, 3]."""
    rows, columns = grid
    patch = patches.shape[1]
    high, wide = picture.shape[0] // rows // patch, picture.shape[1] // columns // patch
    # One row of a patch (p * 3 bytes) is one element: nothing inside it moves, and copying is 1.5 times faster.
    element = np.dtype((np.void, patch * 3))
    source = picture.reshape(rows, high, patch, columns, wide, patch * 3).view(element)
    target = patches.reshape(rows, columns, high, wide, patch, patch * 3).view(element)
    target[...] = source.transpose(0, 3, 1, 4, 2, 5)


def _as_array(pixels: Pixels) -> NDArray[np.uint8]:
    """A contiguous array over the pixels, without a copy where that is possible."""
    if not (isinstance(pixels, np.ndarray) or is_tensor(pixels)):
        raise MediaError(
            f"Expected pixels as a tensor or an array, got {type(pixels).__name__}",
            hint="Use processing.media.load_image.",
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or str(pixels.dtype).removeprefix("torch.") != "uint8":
        raise MediaError(
            f"Expected uint8 RGB pixels [height, width, 3], got {pixels.dtype} {list(pixels.shape)}",
            hint="Use processing.media.load_image, which accepts other layouts.",
        )
    if not isinstance(pixels, np.ndarray):
        pixels = pixels.detach().cpu().contiguous().numpy()
    return np.ascontiguousarray(pixels)


class _Unlocked:
    """Presents a read-only array as writeable: torch warns about read-only memory, which is only ever read here."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array  # keeps the memory alive
        self.__array_interface__ = dict(array.__array_interface__) | {"data": (array.ctypes.data, False)}


def _writeable(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array if array.flags.writeable else np.asarray(_Unlocked(array))
