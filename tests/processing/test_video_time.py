"""Frames are chosen by time, and are the right ones, or those that can be had, in every container."""

from __future__ import annotations

import base64
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import clips
from helpers.pictures import content_of
from PIL import Image

from pocketvlm.config import ImageConfig
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.timeline import Timeline
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.processing.patches.video import encode_video, sample_frame_indices
from pocketvlm.processing.processor import Processor

# Ten frames a second, stillness from the eleventh to the twelfth, eight seconds later.
RECORDING = [*range(11), *range(90, 129)]
BY_TIME = [0, *[10] * 8, 11, 21, 31, 41]


def numbers(source: object, indices: list[int] | None = None) -> list[int]:
    """The numbers shown by the chosen frames (or those at `indices`), one a second."""
    with open_video(source, None, MediaLimits(), files=True) as reader:
        chosen = sample_frame_indices(reader.timeline).main if indices is None else indices
        shown = {index: clips.number_of(pixels) for index, pixels in reader.read(sorted(set(chosen)))}
    return [shown[index] for index in chosen]


def total(source: object) -> int:
    with open_video(source, None, MediaLimits(), files=True) as reader:
        return reader.timeline.total


@pytest.mark.parametrize(
    ("codec", "format", "options"),
    [
        ("libx264", "mp4", {"bf": "2"}),
        ("libx264", "mov", {}),
        ("libx264", "matroska", {"bf": "2"}),
        ("libvpx-vp9", "webm", {"cpu-used": "8", "deadline": "realtime"}),
        ("mpeg4", "avi", {}),
        ("libx264", "flv", {}),
        ("libx264", "mpegts", {"bf": "2"}),
        ("mpeg4", "asf", {}),
    ],
)
def test_a_recording_with_a_still_stretch_gives_the_same_frames_in_every_container(
    codec: str, format: str, options: dict[str, str]
) -> None:
    assert numbers(clips.clip(50, 10, codec=codec, format=format, times=RECORDING, g="12", **options)) == BY_TIME


def test_a_frame_that_stands_still_is_a_unit_of_every_second() -> None:
    video = encode_video(clips.clip(50, 10, codec="libx264", times=RECORDING), ImageConfig(scale_resolution=56))
    assert video.samples.main == tuple(BY_TIME)
    assert video.duration == pytest.approx(12.9)
    assert len({content_of(unit) for unit in video.units}) == len(set(BY_TIME))
    assert len(video.units) == len(BY_TIME)


@pytest.mark.parametrize("options", [{}, {"bf": "2"}], ids=["in order", "reordered"])
def test_frames_dropped_from_an_avi_are_replaced_by_the_one_before(options: dict[str, str]) -> None:
    times = [*range(10), *range(21, 50)]
    body = clips.clip(39, 10, codec="mpeg4", format="avi", times=times, g="12", **options)
    assert numbers(body) == [0, 9, 9, 19, 29]


def test_h264_in_avi_has_no_showing_times_and_keeps_its_order(caplog: pytest.LogCaptureFixture) -> None:
    body = clips.clip(39, 10, codec="libx264", format="avi", g="12", bf="2")
    assert numbers(body, list(range(39))) == list(range(39))
    assert not caplog.records
    # Where frames are missing, their times are known to one frame: the file holds decoding times only.
    dropped = clips.clip(39, 10, codec="libx264", format="avi", times=[*range(10), *range(21, 50)], g="12", bf="2")
    assert np.abs(np.subtract(numbers(dropped), [0, 9, 9, 19, 29])).max() <= 1


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_a_stream_that_begins_between_keyframes_is_read_from_the_first_one(
    codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = clips.clip(50, 25, codec=codec, format="mpegts", g="12")
    cut = stream[len(stream) // 188 // 3 * 188 :]
    count, first = total(cut), numbers(cut, [0])[0]
    assert first in (12, 24, 36)
    assert numbers(cut, list(range(count))) == list(range(first, 50))
    assert "begins between keyframes" in caplog.text


def test_a_program_stream_where_seeking_lands_late_gives_each_frame_its_own_index() -> None:
    body = clips.clip(50, 25, 160, 240, codec="mpeg2video", format="vob", noise=True, g="4", bf="0", qmax="4")
    for index in (6, 10, 13, 19, 38, 46):
        assert numbers(body, [index]) == [index]
    assert numbers(body, [1, 10, 46]) == [1, 10, 46]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
@pytest.mark.parametrize("lost", [30, 41])
def test_one_lost_packet_costs_its_frames_and_is_told(codec: str, lost: int, caplog: pytest.LogCaptureFixture) -> None:
    stream = clips.clip(50, 10, codec=codec, format="mpegts", g="12", noise=True)
    assert numbers(clips.without_packet(stream, lost)) == [0, 10, 20, 30, 40]
    assert "The given data is damaged" in caplog.text


def test_frames_that_cannot_be_decoded_are_replaced_and_told(caplog: pytest.LogCaptureFixture) -> None:
    body = clips.clip(30, 10, codec="mjpeg", format="avi", strict="unofficial")
    assert numbers(clips.without_pictures(body, range(9, 12))) == [0, 8, 20]
    assert "1 of 3 frames cannot be decoded" in caplog.text


@pytest.mark.parametrize("fps", [10, 25, Fraction(30000, 1001), Fraction(24000, 1001), 60], ids=str)
@pytest.mark.parametrize("format", ["mp4", "matroska", "avi", "mpegts", "flv"])
def test_no_container_makes_an_evenly_spaced_clip_uneven(format: str, fps: Fraction) -> None:
    """Times are rounded to what a container can write; counting is what the reference does."""
    body = clips.clip(55, fps, 32, 32, codec="mpeg4" if format == "avi" else "libx264", format=format)
    with open_video(body, None, MediaLimits(), files=True) as reader:
        assert reader.timeline.times is None
        assert reader.timeline.total == 55
        assert reader.timeline.fps == pytest.approx(float(fps), rel=1e-4)  # FLV counts milliseconds


def test_what_is_evenly_spaced_is_counted_as_the_reference_counts() -> None:
    # Rounded to milliseconds, frame 30 of 29.97 a second starts 1 ms after the first second, as in Matroska.
    times = [round(i / 29.97, 3) for i in range(60)]
    assert Timeline.of(times, 2.003, 29.97) == Timeline(60, 29.97, 60 / 29.97)
    # Up to half of an interval off.
    assert Timeline.of([0.0, 0.149, 0.2], 0.3, 10.0).times is None
    assert Timeline.of([0.0, 0.151, 0.2], 0.3, 10.0).times is not None
    uneven = Timeline.of([0.0, 0.1, 5.0], 5.1, 10.0)
    assert [uneven.frame_at(time) for time in (0, 0.05, 0.1, 4.9, 5.0, 9.0)] == [0, 0, 1, 1, 2, 2]
    assert uneven.fps == pytest.approx(3 / 5.1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("kind", ["path", "bytes", "data URL"])
def test_animations_given_as_video_are_clips(format: str, kind: str, tmp_path: Path) -> None:
    lengths = [100] * 11 + [1500] + [500] * 4
    body = clips.animation(format, lengths)
    path = tmp_path / f"clip.{format.lower()}"
    path.write_bytes(body)
    url = f"data:image/{format.lower()};base64," + base64.b64encode(body).decode()
    source = {"path": path, "bytes": body, "data URL": url}[kind]
    video = encode_video(source, ImageConfig(scale_resolution=56))
    assert video.duration == 4.6
    assert numbers(source) == [0, 10, 11, 12, 14]
    assert len(video.units) == 5


def test_an_animation_is_taken_from_video_url(checkpoint: Path) -> None:
    url = "data:image/gif;base64," + base64.b64encode(clips.animation("GIF", [100] * 25)).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "?"}]
    assert len(Processor.from_directory(checkpoint)([{"role": "user", "content": content}]).views) == 3


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_frames_that_are_to_be_passed_at_once_stay_a_tenth_of_a_second(format: str) -> None:
    with open_video(clips.animation(format, [0] * 25), None, MediaLimits(), files=True) as reader:
        assert reader.timeline.duration == 2.5


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_what_is_transparent_in_an_animation_is_white(format: str) -> None:
    frames = [Image.new("RGBA", (32, 32), (200, 0, 0, 0)) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste((0, 0, 255, 255), (0, 0, 8 + number, 8))
    body = clips.saved(frames, format, [100] * 3)
    with open_video(body, None, MediaLimits(), files=True) as reader:
        for index, pixels in reader.read([0, 2]):
            assert pixels[20:, 20:].min() == 255
            assert pixels[4, 4 + index].tolist() == [0, 0, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_still_picture_is_no_video(format: str) -> None:
    body = clips.saved([Image.new("RGB", (32, 32))], format, [100])
    with pytest.raises(MediaError, match="is a picture, expected a video"):
        numbers(body)


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_a_damaged_animation_is_one_line(format: str) -> None:
    body = clips.animation(format, [100] * 15)
    with pytest.raises(MediaError) as error:
        numbers(body[:30])
    assert "\n" not in str(error.value)
    with pytest.raises(MediaError, match="more than 1000"):
        encode_video(body, ImageConfig(scale_resolution=56), limits=MediaLimits(max_pixels=1000))


def test_warnings_name_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "live.ts"
    path.write_bytes(clips.without_packet(clips.clip(50, 10, codec="libx264", format="mpegts", g="12", noise=True), 30))
    with caplog.at_level(logging.WARNING):
        numbers(path)
    assert caplog.text.count(str(path)) == len(caplog.records) >= 1
