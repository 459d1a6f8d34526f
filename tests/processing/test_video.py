from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import clips
from helpers.pictures import content_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.timeline import Timeline
from pocketvlm.processing.media.video_file import FileReader
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.processing.patches.image import encode_image
from pocketvlm.processing.patches.video import VideoViews, encode_video, sample_frame_indices, stack_composite

CONFIG = ImageConfig(scale_resolution=56)
LIMITS = MediaLimits()


def read(source: object, indices: list[int]) -> list[np.ndarray]:
    with open_video(source, None, LIMITS, files=True) as reader:
        return [pixels for _, pixels in reader.read(indices)]


def content(video: VideoViews) -> list[tuple[object, bytes]]:
    return [content_of(unit) for unit in video.units]


# --- sampling --------------------------------------------------------------------------------------------------------


def test_one_frame_a_second_from_its_beginning() -> None:
    samples = sample_frame_indices(Timeline(95, 29.97, 95 / 29.97))
    assert samples.main == (0, 29, 59, 89)
    assert samples.units == ((0,), (29,), (59,), (89,))


def test_long_videos_give_exactly_the_limit_from_first_to_last() -> None:
    samples = sample_frame_indices(Timeline(10_000, 25.0, 400.0), max_num_frames=16)
    assert len(samples.main) == 16
    assert samples.main[0] == 0
    assert samples.main[-1] == int(399.9 * 25)


def test_stacking_interleaves_composites_of_the_frames_between() -> None:
    samples = sample_frame_indices(Timeline(50, 20.0, 2.5), stack_frames=4)
    assert samples.main == (0, 20, 40)
    assert samples.groups == ((5, 10, 15), (25, 30, 35), (45,))
    assert samples.units == ((0,), (5, 10, 15), (20,), (25, 30, 35), (40,), (45,))
    assert samples.sub == (5, 10, 15, 25, 30, 35, 45)


def test_second_without_frames_in_between_has_no_composite() -> None:
    samples = sample_frame_indices(Timeline(21, 20.0, 1.05), stack_frames=2)
    assert samples.units == ((0,), (10,), (20,))
    assert samples.groups == ((10,), ())


def test_header_that_promises_years_costs_nothing() -> None:
    samples = sample_frame_indices(Timeline(10**12, 30.0, 10**9), 128, 5)
    assert (len(samples.main), len(samples.sub)) == (128, 512)


@given(
    total=st.integers(1, 5000),
    fps=st.floats(0.1, 240),
    most=st.integers(1, 140),
    stack=st.integers(1, 8),
)
def test_samples_are_ascending_within_the_video_and_the_budget(total: int, fps: float, most: int, stack: int) -> None:
    samples = sample_frame_indices(Timeline(total, fps, total / fps), most, stack)
    assert 1 <= len(samples.main) <= most
    assert len(samples.sub) <= most * (stack - 1)
    assert len(samples.groups) == len(samples.main)
    assert sum(len(group) for group in samples.groups) <= len(samples.sub)
    for indices in (samples.main, samples.sub):
        assert list(indices) == sorted(indices)
        assert all(0 <= index < total for index in indices)


@pytest.mark.parametrize(
    ("total", "fps", "duration"),
    [
        (0, 10.0, 1.0),
        (10, 0.0, 1.0),
        (10, float("nan"), 1.0),
        (10, 10.0, 0.0),
        (10, 10.0, float("inf")),
        (10, None, 1.0),
    ],
)
def test_videos_without_length_or_rate_are_refused(total: int, fps: float, duration: float) -> None:
    with pytest.raises(MediaError):
        Timeline(total, fps, duration)


@pytest.mark.parametrize("options", [(0, 1), (-3, 1), (True, 1), (4.0, 1), (8, 0), (8, 65), (8, "2")])
def test_bad_options_are_refused(options: tuple[object, object]) -> None:
    with pytest.raises(ConfigError):
        sample_frame_indices(Timeline(10, 10.0, 1.0), *options)  # type: ignore[arg-type]


# --- composites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "height", "width", "layout"),
    [
        (1, 30, 40, (1, 1)),
        (2, 30, 40, (2, 1)),
        (2, 40, 30, (1, 2)),
        (2, 30, 30, (2, 1)),
        (3, 30, 90, (3, 1)),
        (3, 90, 30, (1, 3)),
        (4, 30, 40, (2, 2)),
        (5, 30, 40, (1, 5)),
        (7, 10, 10, (1, 7)),
    ],
)
def test_layout_of_composites(count: int, height: int, width: int, layout: tuple[int, int]) -> None:
    rows, columns = layout
    frames = [np.full((height, width, 3), 10 + number, np.uint8) for number in range(count)]
    canvas = stack_composite(frames)
    assert canvas.shape == (rows * height + 6 * (rows - 1), columns * width + 6 * (columns - 1), 3)
    covered = np.zeros(canvas.shape[:2], bool)
    for number in range(count):
        top, left = number // columns * (height + 6), number % columns * (width + 6)
        assert (canvas[top : top + height, left : left + width] == 10 + number).all()
        covered[top : top + height, left : left + width] = True
    assert (canvas[~covered] == 0).all()


def test_composites_of_nothing_or_of_different_sizes_are_refused() -> None:
    for frames in ([], [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)]):
        with pytest.raises(MediaError, match="composite"):
            stack_composite(frames)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "format", "options"),
    [
        ("mpeg4", "mp4", {}),
        ("libx264", "mp4", {"g": "12", "bf": "3"}),
        ("libx264", "matroska", {"g": "7", "bf": "2", "x264-params": "open-gop=1"}),
        ("libvpx-vp9", "webm", {"g": "10", "cpu-used": "8", "deadline": "realtime"}),
        ("mpeg4", "avi", {"g": "9"}),
        ("mjpeg", "avi", {}),
        ("libx264", "mpegts", {"g": "12", "bf": "2"}),
        ("libx264", "flv", {"g": "12"}),
        ("mpeg2video", "mpeg", {"g": "8"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exactly_the_wanted_frames_are_read(codec: str, format: str, options: dict[str, str]) -> None:
    if codec == "mjpeg":
        # Older encoders want full-range pixels for it; MPEG-4 is tested in AVI as well.
        options = {"strict": "unofficial"}
    fps = 25 if format == "mpeg" else 10
    body = clips.clip(50, fps, codec=codec, format=format, **options)
    for indices in ([0, 10, 20, 30, 40], [49], [3, 4, 5, 31, 48], list(range(50))):
        assert [clips.number_of(pixels) for pixels in read(body, indices)] == indices


def test_unevenly_spaced_frames_keep_their_order() -> None:
    times = [0, 1, 5, 6, 20, 21, 22, 40, 41, 90]
    body = clips.clip(10, 10, codec="libx264", format="matroska", times=times)
    assert [clips.number_of(pixels) for pixels in read(body, [1, 4, 7, 9])] == [1, 4, 7, 9]


def test_count_rate_and_duration_of_files() -> None:
    for format in ("mp4", "matroska", "avi"):
        with open_video(clips.clip(45, Fraction(30000, 1001), format=format), None, LIMITS, files=True) as reader:
            assert reader.timeline.total == 45
            assert reader.timeline.fps == pytest.approx(29.97, abs=0.01)
            assert reader.timeline.duration == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("matrix", "turns"), [((1, 0, 0, 1), 0), ((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_rotation_of_the_track_is_applied(matrix: tuple[int, int, int, int], turns: int) -> None:
    mp4 = clips.clip(3)
    upright = read(mp4, [1])[0]
    assert np.array_equal(read(clips.turned(mp4, matrix), [1])[0], np.rot90(upright, turns))


@pytest.mark.parametrize(
    ("matrix", "turns"), [((-1, 0, 0, 1), 0), ((1, 0, 0, -1), 2), ((0, 1, 1, 0), 1), ((0, -1, -1, 0), -1)]
)
def test_a_mirrored_track_is_shown_mirrored(matrix: tuple[int, int, int, int], turns: int) -> None:
    mp4 = clips.clip(3)
    upright = read(mp4, [1])[0]
    assert np.array_equal(read(clips.turned(mp4, matrix), [1])[0], np.rot90(upright[:, ::-1], turns))


@pytest.mark.parametrize("format", ["mov", "matroska"])
def test_other_containers_turn_frames_as_well(format: str) -> None:
    mp4 = clips.clip(3, codec="libx264")
    turned = clips.in_container(clips.turned(mp4, (0, 1, -1, 0)), format)
    assert np.array_equal(read(turned, [1])[0], np.rot90(read(mp4, [1])[0], -1))


@pytest.mark.parametrize(
    ("shape", "size"), [("16/15", (48, 68)), ("8/9", (54, 64)), ("2/1", (48, 128)), ("40/1", (48, 64))]
)
@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_pixels_that_are_oblong_are_shown_as_a_player_shows_them(
    format: str, shape: str, size: tuple[int, int]
) -> None:
    data = clips.clip(3, format=format, shape=Fraction(shape))
    with open_video(data, None, MediaLimits(), files=False) as reader:
        frames = [pixels for _, pixels in reader.read(range(3))]
    assert [frame.shape for frame in frames] == [(*size, 3)] * 3
    assert [clips.number_of(frame) for frame in frames] == [0, 1, 2]


@pytest.mark.parametrize(
    ("codec", "format", "depth"),
    [
        ("libx264", "mov", "yuv420p10le"),
        ("libx264", "mp4", "yuv422p10le"),
        ("libx265", "mp4", "yuv420p10le"),
        ("libx265", "matroska", "yuv420p12le"),
        ("prores_ks", "mov", "yuv422p10le"),
        ("prores_ks", "mov", "yuva444p10le"),
        ("libvpx", "webm", "yuv420p"),
        ("libx264", "matroska", "yuv444p"),
        ("mjpeg", "mov", "yuvj420p"),
    ],
)
def test_every_depth_and_container_gives_the_colours_that_went_in(codec: str, format: str, depth: str) -> None:
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    body = clips.clip(20, codec=codec, format=format, pixels=depth, **quiet)
    frames = read(body, [0, 7, 19])
    for number, frame in zip((0, 7, 19), frames, strict=True):
        expected = clips.frame_pixels(number, 48, 64).astype(int)
        assert frame.shape == expected.shape
        assert np.abs(frame[:, 4:28] - expected[:, 4:28]).max() <= 8
        assert np.abs(frame[4:20, 40:60] - expected[4:20, 40:60]).max() <= 8


def test_sound_beside_a_clip_changes_nothing() -> None:
    silent = clips.clip(15, codec="libx264")
    with_sound = clips.in_container(silent, "mov", sound=clips.sound_only())
    for format in ("mp4", "matroska"):
        body = clips.in_container(with_sound, format, sound=clips.sound_only())
        assert all(np.array_equal(a, b) for a, b in zip(read(body, [0, 14]), read(silent, [0, 14]), strict=True))


@pytest.mark.parametrize(("height", "width"), [(47, 65), (33, 31), (2, 2), (18, 250)])
def test_odd_sizes_are_read(height: int, width: int) -> None:
    body = clips.clip(4, height=height, width=width, codec="libvpx-vp9", format="webm", deadline="realtime")
    assert read(body, [3])[0].shape == (height, width, 3)


# --- whole videos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "data URL"])
def test_every_kind_of_source_gives_the_same_units(kind: str, tmp_path: Path) -> None:
    body = clips.clip(35)
    path = tmp_path / "a clip.mp4"
    path.write_bytes(body)
    data_url = "data:video/mp4;base64," + base64.b64encode(body).decode()
    video = encode_video({"path": path, "str": str(path), "bytes": body, "data URL": data_url}[kind], CONFIG)
    assert video.samples.main == (0, 10, 20, 30)
    assert (video.fps, video.duration) == (10.0, 3.5)
    expected = [encode_image(pixels, CONFIG, "16x", 1) for pixels in read(body, [0, 10, 20, 30])]
    assert content(video) == [content_of(unit) for unit in expected]
    assert video.visual_tokens == sum(unit.visual_tokens for unit in video.units)


def test_stacked_units_are_mains_and_composites_in_turn() -> None:
    body = clips.clip(25)
    video = encode_video(body, CONFIG, "4x", stack_frames=3)
    assert video.samples.units == ((0,), (3, 6), (10,), (13, 16), (20,), (23,))
    for unit, indices in zip(video.units, video.samples.units, strict=True):
        expected = encode_image(stack_composite(read(body, list(indices))), CONFIG, "4x", 1)
        assert content_of(unit) == content_of(expected)


def test_long_clips_use_frames_twice_where_the_rate_is_low() -> None:
    # Ten candidates a second of a clip with two frames a second: the same frame fills several units.
    frames = np.stack([clips.frame_pixels(number, 20, 30) for number in range(12)])
    video = encode_video(frames, CONFIG, fps=2, max_num_frames=5, stack_frames=3)
    assert len(video.units) == len(video.samples.units)
    for unit, indices in zip(video.units, video.samples.units, strict=True):
        expected = encode_image(stack_composite([frames[i] for i in indices]), CONFIG, "16x", 1)
        assert content_of(unit) == content_of(expected)


def test_frames_as_array_tensor_or_list_are_the_same_video() -> None:
    frames = np.stack([clips.frame_pixels(number, 40, 60) for number in range(20)])
    sources = [frames, torch.from_numpy(frames), torch.from_numpy(frames).permute(0, 3, 1, 2), list(frames)]
    first, *others = (content(encode_video(source, CONFIG, fps=5.0)) for source in sources)
    assert all(other == first for other in others)
    assert content(encode_video(frames, CONFIG, fps=4.0)) != first


def test_options_come_from_the_configuration_unless_given() -> None:
    frames = np.stack([clips.frame_pixels(number, 40, 60) for number in range(20)])
    config = ImageConfig(scale_resolution=56, max_num_frames=2, stack_frames=2)
    assert len(encode_video(frames, config, fps=5).samples.main) == 2
    assert len(encode_video(frames, config, fps=5).units) == 3  # the last second's composite has no main frame
    assert len(encode_video(frames, config, fps=5, max_num_frames=8, stack_frames=1).units) == 4
    assert encode_video(frames, config, fps=5).units[0].grid is None
    big = np.zeros((2, 150, 150, 3), np.uint8)
    assert encode_video(big, CONFIG, "16x", None, fps=1).units[0].grid is not None


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "does not exist"),
        ("empty.mp4", b"", "is empty"),
        ("notes.mp4", b"these are words\n" * 30, "is not a video"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n", "is not a video"),
        ("list2.mp4", b"ffconcat version 1.0\nfile /etc/hostname\n", "is not a video"),
        ("index-lost.mp4", clips.clip(30)[:-900], "cut off"),
        ("data-lost.mp4", clips.clip(30, movflags="faststart")[:-500], "cut off"),
        ("sound.mp4", clips.sound_only(), "has no video"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as error:
        encode_video(path, CONFIG)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_matroska_cut_off_is_shorter_but_readable() -> None:
    body = clips.clip(50, codec="mpeg4", format="matroska", g="5")
    assert 1 <= len(encode_video(body[: len(body) * 2 // 3], CONFIG).units) < 5


@pytest.mark.parametrize("gop", ["1", "10"])
def test_a_clip_that_was_trimmed_without_coding_it_anew_is_whole(gop: str) -> None:
    """An edit list says which frames are shown; the others are in the file all the same."""
    body = bytearray(clips.clip(40, codec="libx264", g=gop, bf="0"))
    place = body.index(b"elst") + 12
    length = int.from_bytes(body[place : place + 4], "big")
    body[place : place + 4] = (length // 2).to_bytes(4, "big")
    with open_video(bytes(body), None, MediaLimits(), files=False) as reader:
        numbers = [clips.number_of(pixels) for _, pixels in reader.read(range(reader.timeline.total))]
    assert numbers == list(range(20))


def test_damage_in_the_middle_is_reported_or_survived() -> None:
    body = bytearray(clips.clip(50, codec="libx264", g="50"))
    middle = len(body) // 3
    body[middle : middle + 600] = bytes(range(200)) * 3
    with contextlib.suppress(MediaError):  # any other exception fails
        assert len(encode_video(bytes(body), CONFIG).units) == 5


def test_size_is_checked_before_decoding() -> None:
    with pytest.raises(MediaError, match="more than 1000"):
        encode_video(clips.clip(3), CONFIG, limits=MediaLimits(max_pixels=1000))


def test_large_composites_are_refused_before_they_are_made() -> None:
    frames = np.zeros((20, 30, 30, 3), np.uint8)
    with pytest.raises(MediaError, match="composite"):
        encode_video(frames, CONFIG, fps=10, stack_frames=10, limits=MediaLimits(max_pixels=5000))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (np.zeros((2, 5, 5, 3), np.uint8), {}, "without their rate"),
        (np.zeros((0, 5, 5, 3), np.uint8), {"fps": 5}, "no frames"),
        (np.zeros((5, 5, 3), np.uint8), {"fps": 5}, "shape"),
        (np.zeros((2, 5, 5, 3), np.uint8), {"fps": 0}, "fps"),
        (np.zeros((2, 5, 5, 3), np.uint8), {"fps": "fast"}, "fps"),
        (np.zeros((2, 5, 5, 3), np.int64), {"fps": 2}, "uint8"),
        (["a.txt"], {"fps": 1}, "does not exist"),
        (None, {}, "Expected a video"),
        ("clip.mp4", {"fps": 5}, "has its own"),
        ("clip.mp4", {"files": False}, "Paths are not accepted"),
        ("data:video/mp4;base64,@", {}, "base64"),
        ("http://127.0.0.1:9/clip.mp4", {}, "private address"),
        (np.zeros((2, 5, 5, 3), np.uint8), {"fps": 1, "max_num_frames": 129}, "too many frames"),
    ],
)
def test_other_sources_and_options_are_refused(source: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        encode_video(source, CONFIG, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["mp4", "matroska", "mpegts"])
def test_seeking_spares_most_of_a_long_clip(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = clips.clip(50, codec="libx264", format=format, g="5", bf="2")
    decoded: list[int | None] = []
    decode = FileReader._decode

    def counting(self: FileReader, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
        for frame in decode(self, packets):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(FileReader, "_decode", counting)
    assert [clips.number_of(pixels) for pixels in read(body, [1, 47])] == [1, 47]
    assert len(decoded) <= 2 * 5 + 7


def test_paths_among_frames_obey_the_rule_on_paths(tmp_path: Path) -> None:
    """Frames may be named by strangers too."""
    path = tmp_path / "frame.png"
    Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save(path)
    assert encode_video([str(path)], CONFIG, fps=1.0).visual_tokens
    with pytest.raises(MediaError, match="Paths are not accepted"):
        encode_video([str(path)], CONFIG, fps=1.0, files=False)


def test_a_codec_that_nobody_decodes_is_one_line() -> None:
    body = clips.clip(5, format="matroska")
    assert body.count(b"V_MPEG4/ISO/ASP") == 1
    with pytest.raises(MediaError, match=r"cannot be decoded|can be read"):
        encode_video(body.replace(b"V_MPEG4/ISO/ASP", b"V_XXXX4/ISO/ASP"), CONFIG)


@pytest.mark.parametrize("fps", [10**400, float("nan"), -1, True])
def test_a_rate_that_is_none_is_refused(fps: float) -> None:
    with pytest.raises(MediaError, match="no number of frames"):
        encode_video(np.zeros((2, 56, 56, 3), np.uint8), CONFIG, fps=fps)


def test_stacking_too_many_of_too_many_frames_is_refused() -> None:
    with pytest.raises(MediaError, match="stack_frames=64"):
        encode_video(np.zeros((2, 56, 56, 3), np.uint8), CONFIG, fps=1.0, stack_frames=64)
