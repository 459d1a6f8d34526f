"""Frames of HDR videos are shown as on an ordinary screen: white is light, grey is grey, and nothing else changes."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from pocketvlm.processing.media.hdr import BT2020, HLG, PEAK, PQ, WHITE, compressed, to_screen
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.video_reader import open_video

SDR = 1  # BT.709, as transfer and as primaries
REFERENCE_WHITE = {PQ: 0.5806, HLG: 0.75}  # codes of 203 cd/m² (ITU-R BT.2408, table 1)


def first_frame(codes: list[float], transfer: int, primaries: int, codec: str, form: str) -> np.ndarray:
    """One grey field for each code, encoded and read."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 16 * len(codes), 32, form
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, primaries
        stream.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        pixels = np.repeat(np.rint(np.array(codes) * 65535).astype(np.uint16), 16)
        pixels = np.broadcast_to(pixels[None, :, None], (32, len(pixels), 3)).copy()
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le").reformat(format=form)
        frame.color_trc, frame.color_primaries = transfer, primaries
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with open_video(buffer.getvalue(), None, MediaLimits(), files=False) as reader:
        ((_, found),) = reader.read([0])
    return found[16, 8::16]


@pytest.mark.parametrize(("codec", "form", "near"), [("ffv1", "gbrp10le", 1), ("libx265", "yuv420p10le", 6)])
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_greys_rise_to_white_and_stay_grey(transfer: int, codec: str, form: str, near: int) -> None:
    codes = [0, 0.2, 0.4, REFERENCE_WHITE[transfer], 0.9, 1]
    found = first_frame(codes, transfer, BT2020, codec, form).astype(int)
    assert np.ptp(found, axis=1).max() <= near
    assert all(found[:-1, 0] <= found[1:, 0])
    assert found[0].max() <= near
    assert found[3].min() >= 205
    assert found[3].max() <= 225  # light, with room above it
    assert found[-1].min() >= 255 - near


def test_both_ways_of_writing_white_give_one_picture() -> None:
    white = [
        to_screen(np.full((1, 1, 3), round(code * 65535), np.uint16), transfer, BT2020)
        for transfer, code in REFERENCE_WHITE.items()
    ]
    assert abs(int(white[0].max()) - int(white[1].max())) <= 1


def test_other_videos_are_shown_as_they_are() -> None:
    assert first_frame([0, 0.5, 1], SDR, SDR, "ffv1", "gbrp10le").tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_what_is_dark_stays_as_it_is_and_colours_keep_their_hue() -> None:
    light = np.linspace(0, PEAK / WHITE, 1000, dtype=np.float32)
    made = compressed(light)
    assert np.array_equal(made[light <= 0.3], light[light <= 0.3])
    assert np.all(np.diff(made) >= 0)
    assert np.all(made <= light + 1e-6)
    assert made[-1] == pytest.approx(1, abs=1e-3)
    red = to_screen(np.array([[[50_000, 0, 0]]], np.uint16), PQ, BT2020)[0, 0]
    assert red[0] == 255
    assert red[1:].max() == 0
