"""Each placeholder grows to the exact tokens of its views, whatever the text around it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import NAMES, build_tokenizer, chat_template
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.errors import PromptError
from pocketvlm.processing.inputs import ModelInputs
from pocketvlm.processing.patches.image import ImageViews
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.processing.prompt.expansion import Units, expand_pieces
from pocketvlm.processing.prompt.template import ChatTemplate
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.views import Size, View

TOKENIZER = Tokenizer(build_tokenizer())
CHAT = ChatTemplate(chat_template(), NAMES)
IMAGE = {"type": "image", "image": 0}
VIDEO = {"type": "video", "video": 0}
PAD, VIDEO_PAD = TOKENIZER.control_id("<|image_pad|>"), TOKENIZER.control_id("<|video_pad|>")


def expand_prompt(*arguments: Any, **options: Any) -> list[int]:
    return [token for piece in expand_pieces(*arguments, **options) for token in piece]


def unit(*tokens: int, grid: tuple[int, int] | None = None) -> ImageViews:
    """A picture whose views have the given numbers of tokens, without pixels."""
    views = tuple(View(Size(height=4, width=4 * count), "16x") for count in tokens)
    patches = np.empty((0, 14, 14, 3), np.uint8)
    return ImageViews(patches=patches, views=views, grid=grid, image=Size(height=56, width=56))


def expand(content: Any, *media: Units, **options: bool) -> str:
    """The expanded user message as text."""
    prompt = CHAT.render([{"role": "user", "content": content}], add_generation_prompt=False)
    text = TOKENIZER.decode(expand_prompt(TOKENIZER, prompt, media, **options), skip_special=False)
    return text.removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>\n")


def picture(*tokens: int, grid: tuple[int, int] | None = None) -> Units:
    return (unit(*tokens, grid=grid),)


def test_slices_may_have_different_numbers_of_tokens() -> None:
    """Trap: every slice's own count is used, never the first slice's for all."""
    assert expand([IMAGE], picture(1, 2, 3, 1, 4, grid=(2, 2))) == (
        "<image_id>0</image_id><image><|image_pad|></image>"
        "<slice><|image_pad|><|image_pad|></slice><slice><|image_pad|><|image_pad|><|image_pad|></slice>\n"
        "<slice><|image_pad|></slice><slice><|image_pad|><|image_pad|><|image_pad|><|image_pad|></slice>"
    )


def test_pictures_and_videos_are_numbered_apart_from_zero() -> None:
    video = (unit(1), unit(1))
    text = expand([IMAGE, VIDEO, IMAGE], picture(1), video, picture(1))
    assert text == (
        "<image_id>0</image_id><image><|image_pad|></image>\n"
        "<image_id>0</image_id><image><|video_pad|></image><image><|video_pad|></image>\n"
        "<image_id>1</image_id><image><|image_pad|></image>"
    )


def test_numbers_can_be_left_out_for_each_kind() -> None:
    assert expand([IMAGE], picture(1), use_image_id=False) == "<image><|image_pad|></image>"
    assert expand([VIDEO], picture(1), use_video_id=False) == "<image><|video_pad|></image>"
    assert expand([VIDEO], picture(1), use_image_id=False).startswith("<image_id>0</image_id>")


def test_the_tenth_picture_has_two_digits() -> None:
    text = expand([IMAGE] * 11, *[picture(1)] * 11)
    assert "<image_id>10</image_id>" in text


@given(st.text("<|>/\nimage_pad"), st.sampled_from(NAMES), st.text("<|>/\nimage_pad"))
def test_text_around_a_picture_moves_no_placeholder(before: str, name: str, after: str) -> None:
    """Traps: prompts are not cut at line breaks, and a placeholder typed by the user is not one."""
    content = [{"type": "text", "text": before + name}, IMAGE, {"type": "text", "text": name + after}]
    prompt = CHAT.render([{"role": "user", "content": content}])
    ids = expand_prompt(TOKENIZER, prompt, [picture(2, 1, 1, grid=(2, 1))])
    visual = [index for index, token in enumerate(ids) if token in (PAD, VIDEO_PAD)]
    first = visual[0]
    assert visual == [first, first + 1, first + 4, first + 8]
    assert TOKENIZER.control_id("<unk>") not in ids
    assert ids.count(TOKENIZER.control_id("<image>")) == 1


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(["16x", "4x"]),
    st.sampled_from([1, 2, 9, 36]),
)
def test_placeholders_equal_visual_tokens_for_every_size(
    height: int, width: int, mode: DownsampleMode, slices: int
) -> None:
    plan = plan_views(Size(height=height, width=width), ImageConfig(), mode, slices)
    patches = np.empty((0, 14, 14, 3), np.uint8)
    medium = (ImageViews(patches=patches, views=plan.views, grid=plan.grid, image=plan.image),)
    prompt = CHAT.render([{"role": "user", "content": [IMAGE]}])
    assert expand_prompt(TOKENIZER, prompt, [medium]).count(PAD) == plan.visual_tokens


def test_media_that_do_not_fit_the_prompt_are_refused() -> None:
    with pytest.raises(PromptError, match="1 encoded media for a prompt with 2"):
        expand([IMAGE, IMAGE], picture(1))
    with pytest.raises(PromptError, match="3 views for an overview and a grid of 2 x 2"):
        expand([IMAGE], picture(1, 1, 1, grid=(2, 2)))


# --- the last count before launch ---------------------------------------------------------------------------------


def inputs(ids: list[int], *tokens: int, **changed: Any) -> ModelInputs:
    views = unit(*tokens).views
    count = sum(view.patches for view in views)
    fields: dict[str, Any] = {
        "input_ids": np.array(ids, np.int64),
        "patches": np.zeros((count, 14, 14, 3), np.uint8),
        "views": views,
        "placeholder_ids": (PAD, VIDEO_PAD),
    }
    return ModelInputs(**(fields | changed))


def test_matching_inputs_are_accepted_and_counted() -> None:
    assert inputs([5, PAD, PAD, 6, VIDEO_PAD], 2, 1).visual_tokens == 3
    assert inputs([5, 6]).visual_tokens == 0
    assert inputs([PAD, VIDEO_PAD, VIDEO_PAD], 1, 2).visual_tokens == 3


@pytest.mark.parametrize(
    ("ids", "tokens"),
    [
        pytest.param([5, PAD], (2,), id="too-few"),
        pytest.param([PAD, PAD, PAD], (2,), id="too-many"),
        pytest.param([PAD, 5, PAD], (2,), id="broken-run"),
        pytest.param([PAD, PAD, 5, PAD], (1, 2), id="right-sum-wrong-order"),
        pytest.param([5], (1,), id="no-placeholder"),
        pytest.param([PAD], (), id="no-view"),
    ],
)
def test_placeholders_without_their_views_never_reach_the_model(ids: list[int], tokens: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match="placeholders for views"):
        inputs(ids, *tokens)


def test_wrong_patches_and_ids_never_reach_the_model() -> None:
    with pytest.raises(PromptError, match=r"expected uint8 \[16, patch"):
        inputs([PAD], 1, patches=np.zeros((15, 14, 14, 3), np.uint8))
    with pytest.raises(PromptError, match="is float32"):
        inputs([PAD], 1, patches=np.zeros((16, 14, 14, 3), np.float32))
    with pytest.raises(PromptError, match=r"expected int64 \[S\]"):
        inputs([PAD], 1, input_ids=np.array([[PAD]]))
