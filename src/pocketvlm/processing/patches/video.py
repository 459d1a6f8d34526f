"""Video → visual units: one frame a second, and between them composites of the frames in between, if asked for.

Up to `max_num_frames` seconds: the first frame of each second. Longer: that many frames, evenly chosen. `stack_frames`
N > 1 adds for each second one composite of N - 1 further frames side by side, after the second's main frame. Every unit
is then treated as a picture. Sampling and layout are those of `MiniCPMV4_6VideoProcessor` in transformers 5.23.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import DownsampleOption, ImageConfig, check_auto_token_budget, check_downsample_mode
from pocketvlm.config_ranges import IMAGE as RANGES
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.timeline import Timeline
from pocketvlm.processing.media.video_reader import FrameReader, open_video
from pocketvlm.processing.patches.image import CutImage, ImageViews, cut_image, finish_images

_DEFAULT_LIMITS = MediaLimits()
_GAP = 6  # pixels between the frames of a composite
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrameSamples:
    """Which frames of a video are looked at.

    Attributes:
        main: indices of the frames that are units of their own.
        sub: indices of all frames in between, in order.
        groups: the same by second, one entry a main frame; empty where nothing falls into that second, and leaving out
            seconds beyond the number of main frames, which nothing is paired with.
    """

    main: tuple[int, ...]
    sub: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Frame indices of each unit in prompt order: a main frame, the composite after it if any, the next main."""
        paired = zip(self.main, self.groups, strict=True)
        return tuple(unit for index, group in paired for unit in ((index,), group) if unit)


@dataclass(frozen=True, slots=True, eq=False)
class VideoViews:
    """One video, ready for the tower.

    Attributes:
        units: one entry a frame or composite, in prompt order.
        samples: the frames they came from.
        fps: frames a second of the source.
        duration: seconds.
    """

    units: tuple[ImageViews, ...]
    samples: FrameSamples
    fps: float
    duration: float

    @property
    def visual_tokens(self) -> int:
        """Tokens of all units together."""
        return sum(unit.visual_tokens for unit in self.units)


def encode_video(
    source: object,
    config: ImageConfig,
    downsample_mode: DownsampleOption = "16x",
    max_slice_nums: int | None = 1,
    *,
    auto_token_budget: float | None = None,
    max_num_frames: int | None = None,
    stack_frames: int | None = None,
    fps: float | None = None,
    limits: MediaLimits = _DEFAULT_LIMITS,
    files: bool = True,
) -> VideoViews:
    """Decode, sample and cut one video.

    Args:
        source: a path; the bytes of a file; a data: or http(s) URL; or frames: uint8 [T, H, W, 3] as array or tensor,
            or a sequence of pictures as `load_image` takes them.
        config, downsample_mode: as for `encode_image`.
        max_slice_nums: most slices of a unit; 1, no slices, is recommended; None takes `config`'s.
        auto_token_budget: as for `encode_image`, but for all units together: the frames with the most fine print are
            raised to 4x.
        max_num_frames, stack_frames: `config`'s when None.
        fps: frames a second; needed for frames, refused for files.
        limits: what is refused.
        files: False refuses paths, for callers whose sources come from strangers.

    Raises:
        MediaError: the source is missing, no video, damaged, without frames or their rate, or over a limit.
        ConfigError: an option with a value that cannot be honoured.
    """
    is_auto = check_downsample_mode(downsample_mode) == "auto"
    budget = check_auto_token_budget(auto_token_budget, is_auto)
    max_num_frames, stack_frames = check_sampling(config, max_num_frames, stack_frames, limits)
    with open_video(source, fps, limits, files) as reader:
        timeline = reader.timeline
        samples = sample_frame_indices(timeline, max_num_frames, stack_frames)
        cut = _cut_units(reader, samples.units, config, downsample_mode, max_slice_nums, limits)
    units = finish_images(cut, budget if is_auto else None)
    return VideoViews(tuple(units), samples, timeline.fps, timeline.duration)


def check_sampling(
    config: ImageConfig, max_num_frames: int | None, stack_frames: int | None, limits: MediaLimits
) -> tuple[int, int]:
    """`max_num_frames` and `stack_frames`, `config`'s when None; refused if they cannot be honoured."""
    given = (
        ("max_num_frames", config.max_num_frames if max_num_frames is None else max_num_frames),
        ("stack_frames", config.stack_frames if stack_frames is None else stack_frames),
    )
    max_num_frames, stack_frames = (RANGES[name].check(name, value) for name, value in given)
    limits.check_frames(max_num_frames, stack_frames)
    return max_num_frames, stack_frames


def within_limits(config: ImageConfig, limits: MediaLimits) -> ImageConfig:
    """`config` with as many frames as the limits allow, where a checkpoint's own are more: said once, in a warning.

    They are only what is done where a request says nothing, and need no videos to be loaded with. What a request itself
    asks for is honoured or refused.
    """
    stack_frames = max(1, min(config.stack_frames, 16 * limits.max_frames))
    max_num_frames = max(1, min(config.max_num_frames, limits.max_frames, 16 * limits.max_frames // stack_frames))
    for name, wanted, allowed in (
        ("max_num_frames", config.max_num_frames, max_num_frames),
        ("stack_frames", config.stack_frames, stack_frames),
    ):
        if wanted != allowed:
            logger.warning(
                "the checkpoint's %s=%s with stack_frames=%s is over the limits of videos: %s is taken where a request "
                "does not say",
                name,
                wanted,
                config.stack_frames,
                allowed,
            )
    return replace(config, max_num_frames=max_num_frames, stack_frames=stack_frames)


def _cut_units(
    reader: FrameReader,
    units: Sequence[tuple[int, ...]],
    config: ImageConfig,
    downsample_mode: DownsampleOption,
    max_slice_nums: int | None,
    limits: MediaLimits,
) -> list[CutImage]:
    """Cut each unit as soon as its frames are there; keep no frame longer than a unit still needs it."""
    finished: dict[tuple[int, ...], CutImage] = {}  # a frame that stands still for seconds is cut once
    last_use: dict[int, int] = {}
    ends_at: dict[int, list[tuple[int, ...]]] = {}
    for unit in dict.fromkeys(units):
        ends_at.setdefault(max(unit), []).append(unit)
        for index in unit:
            last_use[index] = max(last_use.get(index, 0), max(unit))
    kept: dict[int, NDArray[np.uint8]] = {}
    widest = max(map(len, units))
    for index, pixels in reader.read(sorted(last_use)):
        kept[index] = pixels
        if not finished:  # before the frames of a large composite have been gathered
            limits.check_pixels(*_canvas_size(pixels.shape, widest), "A composite of frames")
        for unit in ends_at.get(index, ()):
            frames = [kept[i] for i in unit]
            height, width = _canvas_size(frames[0].shape, len(frames))
            limits.check_pixels(height, width, "A composite of frames")
            finished[unit] = cut_image(stack_composite(frames), config, downsample_mode, max_slice_nums)
        kept = {i: frame for i, frame in kept.items() if last_use[i] > index}
    return [finished[unit] for unit in units]


def sample_frame_indices(timeline: Timeline, max_num_frames: int = 128, stack_frames: int = 1) -> FrameSamples:
    """Choose frames.

    Args:
        timeline: when each frame of the video is shown.
        max_num_frames: most main frames, and most seconds with one frame each.
        stack_frames: frames looked at a second; all beyond the first go into a composite.

    Raises:
        ConfigError: `max_num_frames` or `stack_frames` is out of range.
    """
    max_num_frames = RANGES["max_num_frames"].check("max_num_frames", max_num_frames)
    stack_frames = RANGES["stack_frames"].check("stack_frames", stack_frames)
    duration, index_at = timeline.duration, timeline.frame_at

    # Times are computed where they are wanted, not listed: a header may promise years.
    seconds = math.ceil(duration)
    if duration > max_num_frames:
        tenths = _spread(int(duration / 0.1), max_num_frames)
        main = tuple(index_at(round(tenth * 0.1, 1)) for tenth in tenths)
    else:
        main = tuple(index_at(second) for second in range(seconds))
    if stack_frames == 1:
        return FrameSamples(main, (), ((),) * len(main))

    per_second = stack_frames - 1

    def sub_time(number: int) -> float:
        return number // per_second + (number % per_second + 1) / stack_frames

    available = (seconds - 1) * per_second
    available += sum(sub_time(available + j) < duration for j in range(per_second))
    times = [sub_time(number) for number in _spread(available, max_num_frames * per_second)]
    by_second: dict[int, list[int]] = {}
    for time in times:
        by_second.setdefault(int(time), []).append(index_at(time))
    groups = tuple(tuple(by_second.get(second, ())) for second in range(len(main)))
    return FrameSamples(main, tuple(index_at(time) for time in times), groups)


def _spread(count: int, max_count: int) -> Sequence[int]:
    """0 .. count - 1, or `max_count` of them, evenly, first and last included."""
    if count <= max_count:
        return range(count)
    chosen: list[int] = np.linspace(0, count - 1, max_count, dtype=int).tolist()
    return chosen


def stack_composite(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Frames of one size side by side on black, 6 pixels apart: uint8 [H, W, 3] each → one such picture.

    Two and three frames stand in a row or a column, whichever is nearer to a square; four in a square; others in a row.

    Raises:
        MediaError: no frames, or frames of different sizes.
    """
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise MediaError("The frames of a composite differ in size, or there are none", hint="Use stack_frames=1.")
    if len(frames) == 1:
        return frames[0]
    height, width = frames[0].shape[:2]
    _, columns = _layout(height, width, len(frames))
    canvas = np.zeros((*_canvas_size(frames[0].shape, len(frames)), 3), np.uint8)
    for number, frame in enumerate(frames):
        top, left = (number // columns) * (height + _GAP), (number % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = frame
    return canvas


def _layout(height: int, width: int, count: int) -> tuple[int, int]:
    """(rows, columns) of a composite."""
    if count == 4:
        return 2, 2
    if count not in (2, 3):
        return 1, count

    def distance(rows: int, columns: int) -> float:
        wide, high = columns * width + (columns - 1) * _GAP, rows * height + (rows - 1) * _GAP
        return abs(wide / high - 1.0)

    in_a_row, in_a_column = distance(1, count), distance(count, 1)
    if in_a_row == in_a_column:
        return (1, count) if count == 3 or width >= height else (count, 1)
    return (1, count) if in_a_row < in_a_column else (count, 1)


def _canvas_size(shape: tuple[int, ...], count: int) -> tuple[int, int]:
    """Height and width in pixels of a composite of `count` frames of that shape."""
    rows, columns = _layout(shape[0], shape[1], count)
    return rows * (shape[0] + _GAP) - _GAP, columns * (shape[1] + _GAP) - _GAP
