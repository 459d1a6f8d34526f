"""When each frame of a video is shown: what chooses frames by time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pocketvlm.errors import MediaError
from pocketvlm.ranges import show

MIN_RATE, MAX_RATE = 1e-5, 10_000  # frames a second: from one a day
_ROUNDING = 1e-6  # seconds by which a time may miss the frame it means


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of one video in time.

    Attributes:
        total: how many frames there are.
        fps: frames a second, on average.
        duration: seconds, from the first frame's start to the last one's end.
        times: seconds from the first frame's start to each frame's, ascending; None where frames are evenly spaced, so
            that frame i starts at i / fps.

    Raises:
        MediaError: no frames, no duration, or no rate.
    """

    total: int
    fps: float
    duration: float
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_rate(self.fps)
        if self.total < 1 or not 0 < self.duration < math.inf:
            raise MediaError(
                f"The video has {self.total} frames in {self.duration} seconds", hint="Expected at least one."
            )

    @classmethod
    def of(cls, times: Sequence[float], duration: float, fps: float | None) -> Self:
        """A timeline of frames whose times are known.

        Args:
            times, duration: as the attributes.
            fps: the rate that the file states, None where it states none. Frames that keep to it, each within half of
                its interval, are evenly spaced: their duration is then their number over the rate, as the reference
                counts, and not what rounded times add up to.
        """
        total = len(times)
        if fps is not None and all(abs(time * fps - i) <= 0.5 + _ROUNDING for i, time in enumerate(times)):
            return cls(total, fps, total / fps)
        return cls(total, check_rate(total / duration), duration, times)

    def frame_at(self, seconds: float) -> int:
        """The index of the frame that is shown at a time: the last one that starts at or before it."""
        if self.times is None:
            return min(int(seconds * self.fps), self.total - 1)
        return max(0, bisect_right(self.times, seconds + _ROUNDING) - 1)


def check_rate(fps: float) -> float:
    """A usable number of frames a second."""
    try:
        if isinstance(fps, bool) or not MIN_RATE <= float(fps) <= MAX_RATE:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise MediaError(
            f"fps={show(fps)} is no number of frames a second", hint=f"Expected {MIN_RATE} to {MAX_RATE}."
        ) from None
    return float(fps)
