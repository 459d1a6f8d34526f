"""Files of drawn pictures and clips give every pixel back."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import is_video, load_image
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.synthetic.drawing.files import to_mp4, to_png


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_a_picture_comes_back_as_it_was() -> None:
    (picture,) = pictures(1, 31, 57)
    assert np.array_equal(load_image(to_png(picture)), picture)


@pytest.mark.parametrize(("fps", "height", "width"), [(1, 64, 48), (2.5, 33, 57), (29.97, 224, 225)])
def test_a_clip_comes_back_frame_by_frame_at_its_rate(fps: float, height: int, width: int) -> None:
    frames = pictures(4, height, width)
    content = to_mp4(frames, fps)
    assert is_video(content)
    with open_video(content, None, MediaLimits(), files=False) as reader:
        assert reader.timeline.total == 4
        assert reader.timeline.fps == pytest.approx(fps)
        assert all(np.array_equal(pixels, frames[i]) for i, pixels in reader.read(range(4)))


def test_what_is_no_clip_is_refused() -> None:
    frames = pictures(1, 8, 8) + pictures(1, 8, 9)
    for wrong, fps in ((frames, 1.0), ([], 1.0), (frames[:1], 0.0), (frames[:1], float("nan"))):
        with pytest.raises(MediaError):
            to_mp4(wrong, fps)
