"""Frames of a video by index: from a file through PyAV, or from pixels that are already there.

A reader says how many frames there are and at what rate, then yields the wanted ones in order, one at a time, so that
memory stays at a few frames however long the clip is.

Files are first demuxed without decoding: the packets' times give the exact count and the time of every index, also
where frames are not evenly spaced, and the keyframes tell where seeking pays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.media.sources import describe, open_source
from pocketvlm.ranges import show

MIN_RATE, MAX_RATE = 1e-5, 10_000  # frames a second: from one a day

Frame = tuple[int, NDArray[np.uint8]]

# Only formats that hold their own frames: playlists and the like would let a file name others for us to open.
_OPTIONS = {
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf",
    "protocol_whitelist": "none",
}


class _Packet(NamedTuple):
    """What a packet says, without its content."""

    pts: int | None
    dts: int | None
    shows: bool
    is_keyframe: bool


class FrameReader(Protocol):
    """Frames by index, 0 <= index < total."""

    total: int
    fps: float

    @property
    def duration(self) -> float:
        """Seconds."""

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        """(index, uint8 RGB [H, W, 3]) for each of `indices`, which are ascending and without repetition."""


class PixelReader:
    """Frames that are already decoded: [T, H, W, 3], [T, 3, H, W] or a sequence of pictures of any kind."""

    def __init__(self, frames: Any, fps: float | None, limits: MediaLimits, files: bool) -> None:
        if isinstance(frames, (np.ndarray, Tensor)) and frames.ndim != 4:
            raise MediaError(f"Expected frames of shape [frames, height, width, 3], got {list(frames.shape)}")
        if len(frames) == 0:
            raise MediaError("The video has no frames", hint="Pass at least one.")
        if fps is None:
            raise MediaError("Frames were given without their rate", hint="Pass fps, frames a second.")
        self.total, self.fps = len(frames), check_rate(fps)
        self._frames, self._limits, self._files = frames, limits, files

    @property
    def duration(self) -> float:
        return self.total / self.fps

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield index, load_image(self._frames[index], self._limits, files=self._files)


class FileReader:
    """Frames of an open video file. Made by `open_video`."""

    def __init__(self, container: InputContainer, name: str, limits: MediaLimits) -> None:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not len(container.streams):
            raise MediaError(f"{name} is damaged or cut off", hint="Check that it plays elsewhere.")
        if not streams:
            raise MediaError(f"{name} has no video in it", hint="Pass a file with moving pictures.")
        if streams[0].codec_context is None:
            raise MediaError(f"{name} is of a kind that cannot be decoded", hint="Convert it to MP4 or WebM.")
        self._container, self._stream, self._name, self._limits = container, streams[0], name, limits
        limits.check_pixels(self._stream.height, self._stream.width, name)
        self._times, self._keyframes, self._start = self._scan()
        self.total = len(self._times)
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or not self.total:
            raise MediaError(f"{name} does not say how long it is or how many frames it has a second")
        self.fps = check_rate(float(rate))

    @property
    def duration(self) -> float:
        # Frames over rate rather than the container's own figure, which may be the sound's; the reference's PyAV
        # reader does the same.
        return self.total / self.fps

    def _scan(self) -> tuple[list[int | None], list[tuple[int, int]], int]:
        """Times of all frames in showing order (None where the file has none), keyframes, and where to seek for all.

        A keyframe is its showing time and its decoding time: some formats seek by the one, some by the other, and the
        earlier of the two is never too late.
        """
        packets = []
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                raise self._damaged()
            if packet.size or packet.dts is not None:  # the last, empty packet is PyAV's signal to flush the decoder
                shows = bool(packet.size) and not packet.is_discard
                packets.append(_Packet(packet.pts, packet.dts, shows, packet.is_keyframe))
        if len(packets) < self._stream.frames:
            raise self._damaged()
        start = min((packet.dts for packet in packets if packet.dts is not None), default=0)
        shown = [packet for packet in packets if packet.shows]
        known = sorted({packet.pts for packet in shown if packet.pts is not None})
        if len(known) < len(shown):
            return [None] * len(shown), [], start
        keys = [
            (p.pts, p.pts if p.dts is None else min(p.pts, p.dts)) for p in shown if p.is_keyframe and p.pts is not None
        ]
        return list(known), sorted(keys), start

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        return self._read_by_count(indices) if self._times[0] is None else self._read_by_time(indices)

    def _read_by_time(self, indices: Sequence[int]) -> Iterator[Frame]:
        seeking = True
        frames = self._decode_from(self._start)
        position: int | None = None  # time of the last frame that was decoded
        for index in indices:
            target = self._times[index]
            assert target is not None  # times are all known, or none is
            before = bisect_right(self._keyframes, target, key=itemgetter(0)) - 1
            if seeking and before > 0 and (position is None or self._keyframes[before][0] > position):
                frames = self._decode_from(self._keyframes[before][1])
            frame = _first_at(frames, target)
            if seeking and (frame is None or frame.pts != target):
                # A seek that overshoots: keyframe marks or times are faulty, so trust none of them from here on.
                seeking = False
                frames = self._decode_from(self._start)
                frame = _first_at(frames, target)
            if frame is None or frame.pts != target:
                raise self._damaged()
            position = target
            yield index, self._pixels(frame)

    def _read_by_count(self, indices: Sequence[int]) -> Iterator[Frame]:
        wanted = set(indices)
        for index, frame in enumerate(self._decode_from(self._start)):
            if index in wanted:
                wanted.discard(index)
                yield index, self._pixels(frame)
            if not wanted:
                return
        raise self._damaged()

    def _decode_from(self, time: int) -> Iterator[av.VideoFrame]:
        """Frames in showing order from the keyframe at or before `time`; ends where decoding fails."""
        try:
            self._container.seek(time, stream=self._stream, backward=True)
            yield from self._container.decode(self._stream)
        except av.FFmpegError:
            return

    def _pixels(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        # Streams may change their size midway, to one that was not checked yet.
        self._limits.check_pixels(frame.height, frame.width, self._name)
        pixels: NDArray[np.uint8] = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        # Degrees counter-clockwise, as np.rot90 counts.
        turns = round(frame.rotation / 90) % 4
        return np.rot90(pixels, turns) if turns else pixels

    def _damaged(self) -> MediaError:
        return MediaError(f"{self._name} is damaged or cut off", hint="Check that it plays elsewhere.")


def _first_at(frames: Iterator[av.VideoFrame], time: int) -> av.VideoFrame | None:
    """The first frame at or after `time`."""
    return next((frame for frame in frames if frame.pts is not None and frame.pts >= time), None)


@contextmanager
def open_video(source: object, fps: float | None, limits: MediaLimits, files: bool) -> Iterator[FrameReader]:
    """A reader for a path, bytes, a data: or http(s) URL, or frames (which need `fps`).

    Raises:
        MediaError: the source is missing, no video, damaged, without frames or their rate, or over a limit.
    """
    if isinstance(source, (np.ndarray, Tensor, list, tuple)):
        yield PixelReader(source, fps, limits, files)
        return
    if fps is not None:
        raise MediaError("fps was given for a video file, which has its own", hint="Leave it out.")
    name = describe(source)
    with open_source(source, name, limits, files, "a video", "or frames with fps") as stream:
        # An open file, never a name: names reach every protocol that the library speaks.
        try:
            container = av.open(stream, mode="r", options=dict(_OPTIONS))
        except Exception:
            raise MediaError(
                f"{name} is not a video that can be read, or it is cut off", hint="Convert it to MP4 or WebM."
            ) from None
        with container:
            try:
                yield FileReader(container, name, limits)
            except av.FFmpegError:
                raise MediaError(f"{name} is damaged or cut off", hint="Check that it plays elsewhere.") from None


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
