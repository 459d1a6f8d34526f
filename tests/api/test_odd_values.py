"""Values of kinds that nobody expects, given to the Python interface: each is one line that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pocketvlm.api.vlm import load
from pocketvlm.errors import CheckpointError, ConfigError, MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.media.video_reader import open_video

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_a_grey_picture() -> None:
    matrix = np.matrix(PIXELS)
    assert np.array_equal(load_image(matrix), load_image(PIXELS))
    with open_video([matrix], 1, MediaLimits(), files=False) as reader:
        assert [frame.shape for _, frame in reader.read([0])] == [(3, 4, 3)]


@pytest.mark.parametrize(
    "value",
    [np.array(5, np.uint8), np.uint8([1, 2]), np.array([[None]]), np.ma.masked_array(PIXELS), np.rec.array([(1, 2)])],
    ids=["0-d", "1-d", "objects", "masked", "records"],
)
def test_arrays_that_are_no_pictures_are_refused(value: Any) -> None:
    with pytest.raises(MediaError, match="Expected"):
        load_image(value)
    with pytest.raises(MediaError, match="Expected"), open_video([value], 1, MediaLimits(), files=False) as reader:
        list(reader.read([0]))
    with pytest.raises(MediaError, match="Expected"), open_video(value, 1, MediaLimits(), files=False) as reader:
        list(reader.read([0]))


def test_a_masked_array_is_no_video() -> None:
    frames = np.ma.masked_array(np.zeros((1, 3, 4, 3), np.uint8))
    with pytest.raises(MediaError, match="masked"), open_video(frames, 1, MediaLimits(), files=False):
        pass


@pytest.mark.parametrize("value", [5, "CPU", "", [], True, object()])
def test_progress_that_cannot_be_called_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="progress"):
        load("nano", progress=value)


def test_progress_is_checked_where_it_is_set() -> None:
    with load("nano", runtime="torch", device="cpu") as vlm, pytest.raises(ConfigError, match="progress=5"):
        vlm.progress = 5  # type: ignore[assignment]


def test_a_model_without_a_name_is_told_as_such() -> None:
    with pytest.raises(CheckpointError, match="is empty"):
        load("")


@pytest.mark.parametrize(
    ("value", "what"),
    [("", "path is empty"), (" data:image/png;base64,AA==", "white space"), (b"", "Check"), ("data:,", "Check")],
)
def test_sources_without_content_are_told_as_such(value: Any, what: str) -> None:
    with pytest.raises(MediaError, match=what):
        load_image(value)
