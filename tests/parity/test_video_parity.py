"""Frames, composites and pixels of videos equal the reference's."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import reference
import torch
from transformers.video_utils import VideoMetadata

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.processing.media.timeline import Timeline
from pocketvlm.processing.patches.video import encode_video, sample_frame_indices, stack_composite

CONFIG = ImageConfig()


def frames_of(total: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A moving gradient with a little noise, uint8 [T, H, W, 3]."""
    t, y, x = np.mgrid[0:total, 0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 20, (total, height, width))
    return np.stack([(x + 7 * t) % 200 + noise, (y * 2 + t) % 200 + noise, (x + y) % 200 + noise], -1).astype(np.uint8)


def metadata(total: int, fps: float, duration: float | None = None) -> VideoMetadata:
    return VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps if duration is None else duration)


def test_sampled_indices_of_a_thousand_videos() -> None:
    processor, rng = reference.video_processor(), random.Random(11)
    compared = 0
    for _ in range(1000):
        fps = rng.choice([1.0, 2.5, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0, rng.uniform(0.2, 120)])
        total = rng.randint(1, rng.choice([30, 300, 9000]))
        most, stack = rng.choice([1, 4, 16, 64, 128]), rng.choice([1, 2, 3, 4, 5, 8])
        # Containers round their durations.
        duration = total / fps * rng.choice([1.0, 1.0, 0.999, 1.001])
        expected = processor.sample_frames(metadata(total, fps, duration), most, stack)
        got = sample_frame_indices(Timeline(total, fps, duration), most, stack)
        # Rounded durations can lead the reference past the end of a video; there we take its last frame.
        assert [*got.main, *got.sub] == [min(index, total - 1) for index in expected], (
            total,
            fps,
            duration,
            most,
            stack,
        )
        compared += max(expected) < total
    assert compared > 900


def test_timestamps_around_the_limit() -> None:
    processor = reference.video_processor()
    for seconds in (127.9, 128.0, 128.01, 128.1, 129.0, 200.0, 1000.3):
        for fps in (1.0, 29.97):
            total = math.ceil(seconds * fps)
            for stack in (1, 2, 5):
                expected = processor.sample_frames(metadata(total, fps, seconds), 128, stack)
                got = sample_frame_indices(Timeline(total, fps, seconds), 128, stack)
                assert [*got.main, *got.sub] == [min(index, total - 1) for index in expected]


def test_composites() -> None:
    processor = reference.video_processor()
    for count in range(1, 8):
        for height, width in [(20, 20), (20, 40), (40, 20), (30, 90), (90, 30), (7, 64), (64, 7), (50, 56)]:
            frames = frames_of(count, height, width)
            expected = processor.concat_frames_as_image(torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous())
            got = stack_composite(list(frames))
            assert np.array_equal(got, expected[0].permute(1, 2, 0).numpy()), (count, height, width)


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize(
    ("total", "fps", "size", "slices", "most", "stack"),
    [
        (35, 10.0, (96, 128), 1, 128, 1),
        (25, 10.0, (128, 97), 1, 128, 2),
        (25, 10.0, (90, 160), 1, 128, 4),
        (17, 5.0, (90, 160), 1, 128, 5),
        (11, 10.0, (700, 500), 9, 128, 1),
        (14, 10.0, (300, 600), 4, 128, 3),
        (60, 10.0, (64, 64), 1, 4, 1),
        (60, 10.0, (64, 80), 1, 4, 3),
        (9, 2.0, (64, 80), 1, 3, 4),
        (1, 30.0, (61, 83), 1, 128, 3),
    ],
)
def test_pixel_values_are_bit_equal(
    total: int, fps: float, size: tuple[int, int], slices: int, most: int, stack: int, mode: DownsampleMode
) -> None:
    frames = frames_of(total, *size)
    options = {"max_slice_nums": slices, "max_num_frames": most, "stack_frames": stack, "downsample_mode": mode}
    expected = reference.video_processor(**options)(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()],
        video_metadata=[metadata(total, fps)],
        return_tensors="pt",
    )
    got = encode_video(frames, CONFIG, mode, slices, max_num_frames=most, stack_frames=stack, fps=fps)
    assert [len(got.units)] == list(expected["num_frames_per_video"])
    assert [len(unit.views) for unit in got.units] == expected["num_patches_per_frame"].tolist()
    assert [list(unit.grid or (0, 0)) for unit in got.units] == expected["grids_videos"].tolist()
    views = [view.size for unit in got.units for view in unit.views]
    assert [[size.height, size.width] for size in views] == expected["target_sizes_videos"].tolist()
    values = to_reference_layout(np.concatenate([unit.patches for unit in got.units]), CONFIG)
    assert torch.equal(values, expected["pixel_values_videos"])
