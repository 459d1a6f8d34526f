"""One list of the options of pictures and videos: what reads, offers and honours them goes by it."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketvlm.api.vlm import PROMPT_OPTIONS
from pocketvlm.cli.common import PICTURES, VIDEO, add_options
from pocketvlm.errors import ConfigError
from pocketvlm.processing.picture_options import PICTURE_OPTIONS, PictureOptions
from pocketvlm.processing.processor import Processor
from pocketvlm.protocol.chat_request import MM_PROCESSOR_KWARGS, parse_chat_completion

NAMES = [option.name for option in fields(PictureOptions)]
# A value of the right kind that cannot be honoured, or of another kind.
WRONG: dict[str, Any] = {
    "downsample_mode": "8x",
    "auto_token_budget": 0.5,
    "max_slice_nums": 0,
    "page_dpi": 0,
    "max_num_frames": 0,
    "stack_frames": 0,
    "use_image_id": "yes",
    "use_video_id": "yes",
    "video_max_slice_nums": 0,
}
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]


def test_every_list_of_names_is_the_same_one() -> None:
    assert set(NAMES) == set(MM_PROCESSOR_KWARGS) == set(PICTURE_OPTIONS)
    assert set(PROMPT_OPTIONS) == {*NAMES, "enable_thinking", "tools"}
    assert {*PICTURES, *VIDEO} <= set(NAMES)
    assert not {*PICTURES} & {*VIDEO}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_reaches_the_processor_and_is_checked_there(checkpoint: Path, name: str) -> None:
    options = {"downsample_mode": "auto"} if name == "auto_token_budget" else {}
    with pytest.raises(ConfigError, match=name):
        Processor.from_directory(checkpoint)(QUESTION, **options, **{name: WRONG[name]})


def test_an_option_that_does_not_exist_is_no_option_of_the_processor(checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="max_slices"):
        Processor.from_directory(checkpoint)(QUESTION, max_slices=4)


@pytest.mark.parametrize(
    ("options", "fewer"),
    [({"max_num_frames": 1}, True), ({"video_max_slice_nums": 4}, False), ({"downsample_mode": "4x"}, False)],
    ids=["frames", "slices", "rate"],
)
def test_options_of_videos_are_honoured(checkpoint: Path, options: dict[str, Any], fewer: bool) -> None:
    processor = Processor.from_directory(checkpoint)
    frames = np.zeros((3, 600, 800, 3), dtype=np.uint8)
    messages = [{"role": "user", "content": [{"type": "video", "video": frames, "fps": 1}]}]
    plain, changed = processor(messages).visual_tokens, processor(messages, **options).visual_tokens
    assert (changed < plain) == fewer
    assert changed != plain


def test_the_command_line_and_bodies_take_each_by_its_kind() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, PICTURES, VIDEO)
    given = parser.parse_args(["--max-num-frames", "7", "--auto-token-budget", "2", "--downsample-mode", "4x"])
    assert (given.max_num_frames, given.auto_token_budget, given.downsample_mode) == (7, 2.0, "4x")
    body = {"messages": QUESTION, "mm_processor_kwargs": {"use_video_id": 1}}
    with pytest.raises(ConfigError, match=r"mm_processor_kwargs\.use_video_id"):
        parse_chat_completion(body)


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PictureOptions().stack_frames = 2  # type: ignore[misc]
