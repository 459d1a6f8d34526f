"""Frames of a video file by index, through PyAV.

A file is first demuxed without decoding: the times of its packets are the times of its frames, also where these are not
evenly spaced, and its keyframes tell where seeking pays. What cannot be decoded (before the first keyframe, or damaged)
is left out or replaced by the frame before it, and a warning says so.

Seeking is not trusted: containers without an index land where they guess. Every packet after a seek must be the one
that the first pass saw there; if not, the file is opened anew and decoded from its start.
"""

from __future__ import annotations

import logging
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from operator import itemgetter
from typing import IO, Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.hdr import is_hdr, to_screen
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.rgb import rgb_from_array
from pocketvlm.processing.media.timeline import MAX_RATE, MIN_RATE, Timeline

logger = logging.getLogger(__name__)

# Only formats that hold their own frames: playlists and the like would let a file name others for us to open.
_OPTIONS = {
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,apng",
    "protocol_whitelist": "none",
}
_MOST_OBLONG = 16  # a stored pixel that is wider, or higher, is a fault of the file
_UNKNOWN = -(2**63)  # FFmpeg's own sign for a time that is not known


class _Scan(NamedTuple):
    """All packets of a file in the order of the file, without their content; times in units of the stream."""

    pts: array[int]
    sizes: array[int]
    shown: list[tuple[int, int]]  # time and duration of each frame, in showing order
    keyframes: list[tuple[int, int, int]]  # showing time, time to seek to, number of the packet
    kind: str  # "showing" or "decoding": what the times in `shown` are; "none": just numbers
    corrupt: int  # packets
    is_led: bool  # a keyframe that is not shown stands before the first frame, as in a clip that was trimmed uncoded


class _SeekError(Exception):
    """A seek landed where it should not."""


class _Cursor:
    """Decoded frames, walked forward; `stamps` are showing times, or ordinals where the file has no times."""

    def __init__(self, frames: Iterator[av.VideoFrame], has_times: bool, was_sought: bool = False) -> None:
        self._frames, self._has_times, self._count = frames, has_times, 0
        self.was_sought = was_sought
        self.current: tuple[int, av.VideoFrame] | None = None
        self.following = self._next()

    def _next(self) -> tuple[int, av.VideoFrame] | None:
        for frame in self._frames:
            self._count += 1
            if not self._has_times:
                return self._count - 1, frame
            if frame.pts is not None:
                return frame.pts, frame
        return None

    def at(self, stamp: int) -> tuple[int, av.VideoFrame] | None:
        """The last frame at or before `stamp`, else the first after it, with its own stamp; None: there is none."""
        while self.following is not None and self.following[0] <= stamp:
            self.current, self.following = self.following, self._next()
        return self.current or self.following


class FileReader:
    """Frames of an open video file.

    Args:
        file: seekable; stays open, and is the caller's to close.
        name: what errors and warnings call it.
        limits: what is refused.

    Raises:
        MediaError: no video, of a kind that cannot be decoded, damaged beyond reading, or over a limit.
    """

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits) -> None:
        self._file, self._name, self._limits = file, name, limits
        self._container, self._stream = self._open()
        try:
            limits.check_pixels(self._stream.height, self._stream.width, name)
            self._scan = self._scan_packets()
            self._seeks = True
            self._cursor = self._from_start()
            self.timeline = self._make_timeline()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._container.close()

    def _open(self) -> tuple[InputContainer, VideoStream]:
        self._file.seek(0)
        # An open file, never a name: names reach every protocol that the library speaks.
        try:
            container = av.open(self._file, mode="r", options=dict(_OPTIONS))
        except Exception:
            raise MediaError(
                f"{self._name} is not a video that can be read, or it is cut off", hint="Convert it to MP4 or WebM."
            ) from None
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        fault = None
        if not len(container.streams):
            fault = self._damaged()
        elif not streams:
            fault = MediaError(f"{self._name} has no video in it", hint="Pass a file with moving pictures.")
        elif streams[0].codec_context is None:
            fault = MediaError(f"{self._name} is of a kind that cannot be decoded", hint="Convert it to MP4 or WebM.")
        if fault is not None:
            container.close()
            raise fault
        return container, streams[0]

    def _scan_packets(self) -> _Scan:
        pts, sizes, keyframes, corrupt, is_led = array("q"), array("q"), [], 0, False
        showing: list[tuple[int | None, int | None, int]] = []
        try:
            for packet in self._container.demux(self._stream):
                if not packet.size:  # a repeated frame, or PyAV's signal to flush the decoder
                    continue
                if packet.is_keyframe and packet.pts is not None and not packet.is_discard:
                    # Some formats seek by showing time, some by decoding time; the earlier is never too late.
                    earlier = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
                    keyframes.append((packet.pts, earlier, len(pts)))
                pts.append(_UNKNOWN if packet.pts is None else packet.pts)
                sizes.append(packet.size)
                corrupt += packet.is_corrupt
                is_led |= packet.is_keyframe and packet.is_discard and not showing
                if not packet.is_discard:
                    showing.append((packet.pts, packet.dts, packet.duration or 0))
        except av.FFmpegError:
            corrupt += 1  # what follows cannot be had
        # MP4 lists every frame. The count of other headers is a promise: AVI counts frames that were dropped.
        is_short = len(pts) < self._stream.frames and "mp4" in self._container.format.name
        if not showing or (is_short and self._frames_with_those_cut() < self._stream.frames):
            raise self._damaged()
        for kind in ("showing", "decoding")[self._lacks_showing_times(pts) :]:
            column = 0 if kind == "showing" else 1
            shown = sorted((entry[column] or 0, entry[2]) for entry in showing if entry[column] is not None)
            # A lost packet may take the time of its frame with it.
            if len({time for time, _ in shown}) == len(shown) >= max(1, len(showing) - corrupt):
                if kind == "showing":
                    return _Scan(pts, sizes, shown, sorted(keyframes), kind, corrupt, is_led)
                return _Scan(pts, sizes, self._shown_after_delay(shown), [], kind, corrupt, is_led)
        return _Scan(pts, sizes, [(number, 1) for number in range(len(showing))], [], "none", corrupt, is_led)

    def _frames_with_those_cut(self) -> int:
        """Frames that are in the file, with those that its edit list leaves out, which is no damage."""
        place = self._file.tell()  # of the open container, which goes on from there
        self._file.seek(0)
        count = 0
        try:
            with av.open(self._file, mode="r", options={**_OPTIONS, "ignore_editlist": "1"}) as container:
                for packet in container.demux(container.streams[self._stream.index]):
                    count += bool(packet.size) or packet.pts is not None  # not PyAV's signal at the end
        except av.FFmpegError:
            pass
        finally:
            self._file.seek(place)
        return count

    def _lacks_showing_times(self, pts: array[int]) -> bool:
        """True for AVI with frames in another order than they are shown: it has decoding times only, and those that
        FFmpeg makes up for H.264 are wrong, which shows in their rising from packet to packet."""
        is_reordered = self._stream.codec_context.has_b_frames
        return "avi" in self._container.format.name and is_reordered and sorted(pts) == list(pts)

    def _shown_after_delay(self, decoded: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Showing times by decoding times: a frame is shown as many frames later as the codec holds back."""
        delay = min(int(self._stream.codec_context.has_b_frames), len(decoded) - 1)
        last, length = decoded[-1]
        return decoded[delay:] + [(last + (number + 1) * max(length, 1), length) for number in range(delay)]

    def _make_timeline(self) -> Timeline:
        """Times of all frames that can be decoded; the others are taken out of `self._scan`."""
        scan, first = self._scan, self._cursor.following
        if first is None:
            raise self._damaged()
        begin = first[0]
        if scan.keyframes and not first[1].key_frame and not scan.is_led:
            # Some decoders start with changes to a frame that they have not got.
            begin = max(begin, scan.keyframes[0][0])
        missed = bisect_left(scan.shown, begin, key=itemgetter(0)) if scan.kind == "showing" else 0
        if missed == len(scan.shown):
            raise self._damaged()
        if missed:
            logger.warning(
                "%s begins between keyframes: its first %d of %d frames cannot be decoded and are left out",
                *(self._name, missed, len(scan.shown)),
            )
            del scan.shown[:missed]
        if scan.corrupt:
            if not self._limits.damaged_clips:
                raise self._damaged()
            logger.warning("%s is damaged; frames near the damage may be wrong", self._name)
        stated = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        fps = stated if MIN_RATE <= stated <= MAX_RATE else None
        if scan.kind != "none":
            unit, zero = self._stream.time_base or Fraction(1), scan.shown[0][0]
            begins, length = scan.shown[-1]
            duration = float((begins - zero + length) * unit) + (0 if length else 1 / (fps or 1.0))
            return Timeline.of([float((time - zero) * unit) for time, _ in scan.shown], duration, fps)
        if fps is None:
            raise MediaError(f"{self._name} does not say how many frames it has a second")
        return Timeline(len(scan.shown), fps, len(scan.shown) / fps)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(index, uint8 RGB [H, W, 3]) for each of `indices`, which are ascending and without repetition."""
        replaced = 0
        for index in indices:
            stamp = self._scan.shown[index][0] if self._scan.kind == "showing" else index
            found = self._frame_at(stamp)
            replaced += found[0] != stamp
            yield index, self._pixels(found[1])
        if replaced:
            what = f"{self._name} is damaged: {replaced} of {len(indices)} frames cannot be decoded"
            if not self._limits.damaged_clips:
                raise MediaError(what, hint="Write the clip anew, or cut it where the damage is.")
            logger.warning("%s, the frames before them are shown instead", what)

    def _frame_at(self, stamp: int) -> tuple[int, av.VideoFrame]:
        """The frame at `stamp`; where it cannot be decoded, the one before it, or else the one after."""
        if self._cursor.current is not None and stamp < self._cursor.current[0]:
            self._cursor = self._from_start()
        position = self._cursor.current[0] if self._cursor.current is not None else _UNKNOWN
        before = bisect_right(self._scan.keyframes, stamp, key=itemgetter(0)) - 1
        try:
            if self._seeks and before > 0 and self._scan.keyframes[before][0] > position:
                self._cursor = self._after_seek(before)
            found = self._cursor.at(stamp)
            is_right = found is not None and (found[0] == stamp or self._scan.corrupt > 0)
            is_trusted = is_right or not self._cursor.was_sought
        except _SeekError:
            is_trusted = False
        if not is_trusted:
            # A seek was faulty, or the marks of keyframes are: trust none from here on.
            self._seeks = False
            self._cursor = self._from_start()
            found = self._cursor.at(stamp)
        if found is None:
            raise self._damaged()
        return found

    def _from_start(self) -> _Cursor:
        # Opened anew, because even a seek to the start may land behind it.
        self.close()
        self._container, self._stream = self._open()
        return _Cursor(self._decode(self._packets()), self._scan.kind == "showing")

    def _packets(self) -> Iterator[av.Packet[VideoStream]]:
        try:
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
        except av.FFmpegError:
            return

    def _after_seek(self, keyframe: int) -> _Cursor:
        """Frames from a keyframe, or from before it; `_SeekError` as soon as a packet is not the expected one."""
        _, time, number = self._scan.keyframes[keyframe]
        try:
            self._container.seek(time, stream=self._stream, backward=True)
        except av.FFmpegError:
            raise _SeekError from None
        return _Cursor(self._decode(self._expected(self._packets(), number)), True, was_sought=True)

    def _expected(self, packets: Iterator[av.Packet[VideoStream]], latest: int) -> Iterator[av.Packet[VideoStream]]:
        """The packets, compared with those of the first pass; the first must be one of the first `latest` + 1."""
        scan, number = self._scan, -1
        for packet in packets:
            seen = (_UNKNOWN if packet.pts is None else packet.pts, packet.size)
            if number < 0:
                known = (n for n in range(latest, -1, -1) if scan.pts[n] == seen[0])
                number = next(known, len(scan.pts))
            if number >= len(scan.pts) or seen != (scan.pts[number], scan.sizes[number]):
                raise _SeekError
            yield packet
            number += 1

    def _decode(self, packets: Iterator[av.Packet[VideoStream]]) -> Iterator[av.VideoFrame]:
        """Frames in showing order; packets that cannot be decoded give none."""
        for packet in packets:
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue
        try:
            yield from self._stream.decode(None)
        except av.FFmpegError:
            return

    def _pixels(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        # Streams may change their size midway, to one that was not checked yet.
        size = _shown_size(frame, self._stream.sample_aspect_ratio)
        self._limits.check_pixels(*size, self._name)
        if is_hdr(frame.color_trc):
            pixels = to_screen(np.asarray(frame.to_ndarray(format="rgb48le")), frame.color_trc, frame.color_primaries)
        elif any(component.is_alpha for component in frame.format.components):
            pixels = rgb_from_array(np.asarray(frame.to_ndarray(format="rgba")), self._limits)
        else:
            pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        if pixels.shape[:2] != size:  # not by FFmpeg, which would make it a shade darker
            pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
        return _upright(pixels, frame)

    def _damaged(self) -> MediaError:
        return MediaError(f"{self._name} is damaged or cut off", hint="Check that it plays elsewhere.")


def _shown_size(frame: av.VideoFrame, shape: Fraction | None) -> tuple[int, int]:
    """Height and width in square pixels, where the stored ones are `shape` times as wide as high: the shorter side is
    enlarged, so that nothing is lost."""
    if not shape or not _MOST_OBLONG >= shape >= 1 / _MOST_OBLONG:  # not known, or nonsense
        return frame.height, frame.width
    if shape >= 1:
        return frame.height, round(frame.width * shape)
    return round(frame.height / shape), frame.width


def _upright(pixels: NDArray[np.uint8], frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Pixels as they are to be shown: turned by quarters, and mirrored, which the angle that PyAV gives leaves out."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A point (x, y) of the stored frame is shown at (a x + c y, b x + d y); numbers are fractions of 16 bits.
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]
    is_turned = abs(b) > abs(a)
    across, down = (c, b) if is_turned else (a, d)
    shown = pixels.transpose(1, 0, 2) if is_turned else pixels
    return shown[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
