"""Processor: one call from messages to counted inputs; its options and its faults."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import NAMES, write_checkpoint
from helpers.pictures import content_of, encoded
from PIL import Image

from pocketvlm.errors import CheckpointError, ConfigError, MediaError, PromptError
from pocketvlm.processing import media_encoding as module
from pocketvlm.processing.inputs import ModelInputs
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.expansion import Units


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Processor:
    return Processor.from_directory(checkpoint)


def pixels(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ask(*media: Any, words: str = "What is it?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": medium} for medium in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


def text(processor: Processor, inputs: ModelInputs) -> str:
    return processor.tokenizer.decode(inputs.input_ids.tolist(), skip_special=False)


def test_a_prompt_without_media_has_no_patches(processor: Processor) -> None:
    inputs = processor([{"role": "user", "content": "hi"}])
    assert inputs.patches.shape == (0, 14, 14, 3)
    assert inputs.views == ()
    assert inputs.input_ids.dtype == np.int64


def test_views_and_patches_follow_the_prompt(processor: Processor) -> None:
    inputs = processor(ask(pixels(448, 448), pixels(900, 700), pixels(64, 96)))
    assert [view.visual_tokens for view in inputs.views][:2] == [64, 63]
    assert len(inputs.views) == 1 + 5 + 1
    assert inputs.patches.shape == (sum(view.patches for view in inputs.views), 14, 14, 3)
    assert inputs.patches.dtype == np.uint8
    assert inputs.visual_tokens == text(processor, inputs).count("<|image_pad|>")


@pytest.mark.parametrize(("height", "width", "tokens"), [(820, 1084, 441), (1080, 1920, 578), (64, 96, 70)])
def test_height_and_width_are_not_swapped(processor: Processor, height: int, width: int, tokens: int) -> None:
    """Trap: the same picture lying on its side has another number of tokens (495 for the first)."""
    assert processor(ask(pixels(height, width))).visual_tokens == tokens


def test_slices_rows_are_separated_by_line_breaks_inside_one_message(processor: Processor) -> None:
    """Trap: a prompt cannot be cut at line breaks; the text after the last slice starts with one, too."""
    prompt = text(processor, processor(ask(pixels(900, 900), words="a\nb")))
    body = prompt.replace("<|image_pad|>", "")
    assert "<image></image><slice></slice><slice></slice>\n<slice></slice><slice></slice>\na\nb<|im_end|>" in body


def test_same_prompt_and_another_picture_differ_in_their_patches_only(processor: Processor) -> None:
    """Trap: a cache keyed on token ids alone answers about the first picture for ever."""
    first, again, other = (processor(ask(pixels(448, 448, seed))) for seed in (1, 1, 2))
    assert np.array_equal(first.input_ids, other.input_ids)
    assert content_of(first) == content_of(again) != content_of(other)
    assert first.views == other.views


@pytest.mark.parametrize("name", NAMES)
def test_a_typed_control_token_stays_text_beside_a_real_picture(processor: Processor, name: str) -> None:
    """Trap: placeholders typed by a user. Their ids, their number and the picture's place do not change."""
    controls = set(processor.tokenizer.control_tokens.values())
    plain, typed = (processor(ask(pixels(64, 96), words=words)) for words in ("x", f"x{name}"))
    kept = [[i for i in inputs.input_ids.tolist() if i in controls] for inputs in (plain, typed)]
    assert kept[0] == kept[1]
    assert f"x{name}<|im_end|>" in text(processor, typed)


def test_each_picture_may_have_its_own_mode(processor: Processor) -> None:
    picture = pixels(448, 448)
    inputs = processor(ask(picture, picture, picture), downsample_mode=["16x", "4x", "16x"])
    assert [view.visual_tokens for view in inputs.views] == [64, 256, 64]
    first, second, third = np.split(inputs.patches, 3)
    alone = processor(ask(picture), downsample_mode="4x")
    assert (second.shape, inputs.views[1:2]) == (alone.patches.shape, alone.views)
    assert np.array_equal(second, alone.patches)
    assert np.array_equal(first, third)


def test_the_mode_is_the_checkpoints_unless_given(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"downsample_mode": "4x"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Processor.from_directory(tmp_path)(ask(pixels(448, 448))).visual_tokens == 256


def test_slicing_and_image_ids_can_be_chosen(processor: Processor) -> None:
    picture = ask(pixels(1344, 1344))
    assert processor(picture).visual_tokens == 640
    assert processor(picture, max_slice_nums=1).visual_tokens == 64
    assert "<image_id>" not in text(processor, processor(picture, use_image_id=False))


def test_each_picture_may_have_its_own_slices(processor: Processor) -> None:
    picture = pixels(900, 900)
    url = "data:image/png;base64," + base64.b64encode(encoded(Image.fromarray(picture))).decode()

    def views(*parts: dict[str, Any], **options: Any) -> list[int]:
        """How many views each picture has."""
        inputs = processor([{"role": "user", "content": list(parts)}], **options)
        prompt = text(processor, inputs).split("<image_id>")[1:]
        return [1 + part.count("<slice>") for part in prompt]

    def named(**fields: Any) -> dict[str, Any]:
        return {"type": "image", "image": picture} | fields

    def linked(**fields: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url} | fields}

    assert views(linked(detail="low"), linked(detail="high"), linked(detail="auto"), linked()) == [1, 5, 5, 5]
    assert views(named(detail="low"), named(detail="high"), {**linked(), "detail": "low"}) == [1, 5, 1]
    assert views(named(max_slice_nums=2), named(), named(max_slice_nums=1, detail="low")) == [3, 5, 1]
    # What the message says goes before what the request says, which goes before the checkpoint.
    assert views(linked(detail="low"), linked(detail="high"), named(max_slice_nums=4), max_slice_nums=2) == [1, 3, 5]
    assert views(named(max_slice_nums=4), max_slice_nums=1, downsample_mode=["4x"]) == [5]


def test_a_video_may_have_its_own_slices(processor: Processor) -> None:
    (message,) = watch(frames(2, 500, 600))
    message["content"][0]["max_slice_nums"] = 4
    assert len(processor([message]).views) == 3
    message["content"][0] |= {"max_slice_nums": None, "detail": "low"}
    assert len(processor([message], video_max_slice_nums=9).views) == 1


def test_bytes_and_data_urls_are_read(processor: Processor, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(64, 96)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    expected = content_of(processor(ask(pixels(64, 96))))
    assert content_of(processor(ask(file.getvalue()))) == expected
    assert content_of(processor(ask(tmp_path / "a.png"))) == expected
    part = {"type": "image_url", "image_url": {"url": url}}
    assert content_of(processor([{"role": "user", "content": [part]}])) == expected


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"downsample_mode": "8x"}, "8x"),
        ({"downsample_mode": ["16x", "4x"]}, "1 pictures and videos"),
        ({"downsample_mode": ["8x"]}, "8x"),
        ({"downsample_mode": {"16x": 1}}, "Give one mode"),
        ({"max_slice_nums": 0}, "max_slice_nums"),
        ({"max_slice_nums": True}, "max_slice_nums"),
        ({"use_image_id": "yes"}, "use_image_id"),
        ({"use_video_id": 1}, "use_video_id"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(processor: Processor, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        processor(ask(pixels(64, 96)), **options)


def test_an_unreadable_picture_is_named_by_its_place(processor: Processor) -> None:
    messages = ask(pixels(64, 96), b"no picture")
    with pytest.raises(MediaError, match=r"^messages\[0\]\.content\[1\]: "):
        processor(messages)


def frames(count: int, height: int = 240, width: int = 320) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def watch(video: Any, fps: float | None = 2.0) -> list[dict[str, Any]]:
    parts = [{"type": "video", "video": video, "fps": fps}, {"type": "text", "text": "What happens?"}]
    return [{"role": "user", "content": parts}]


def test_a_video_uses_its_own_placeholder(processor: Processor) -> None:
    """Trap: a video with image placeholders is silently garbage."""
    inputs = processor(watch(frames(6)))
    prompt = text(processor, inputs)
    assert prompt.count("<|video_pad|>") == inputs.visual_tokens == 3 * 63
    assert "<|image_pad|>" not in prompt
    assert len(inputs.views) == 3


def test_pictures_and_videos_keep_their_order(processor: Processor) -> None:
    picture, video = ask(pixels(448, 448))[0]["content"][0], watch(frames(2, 448, 448))[0]["content"][0]
    for parts in ([picture, video], [video, picture]):
        inputs = processor([{"role": "user", "content": parts}], downsample_mode=["16x", "4x"])
        assert [view.visual_tokens for view in inputs.views] == [64, 256]
        pads = [token for token in inputs.input_ids.tolist() if token in inputs.placeholder_ids]
        names = [processor.tokenizer.control_id(f"<|{part['type']}_pad|>") for part in parts]
        assert pads == [names[0]] * 64 + [names[1]] * 256


def test_video_options_reach_the_video(processor: Processor) -> None:
    def count(**options: Any) -> int:
        return len(processor(watch(frames(8, 500, 600)), **options).views)

    assert count() == 4
    assert count(max_num_frames=2) == 2
    assert count(stack_frames=2) == 8
    assert count(video_max_slice_nums=9) > 4
    assert "<image_id>" not in text(processor, processor(watch(frames(2)), use_video_id=False))


def test_a_video_that_cannot_be_read_is_named_by_its_place(processor: Processor) -> None:
    with pytest.raises(MediaError, match=r"^messages\[0\]\.content\[0\]: "):
        processor(watch(b"no video", fps=None))
    with pytest.raises(ConfigError, match="max_num_frames"):
        processor(watch(frames(2)), max_num_frames=0)


def test_limits_and_the_rule_on_paths_reach_the_reader(checkpoint: Path, tmp_path: Path) -> None:
    strict = Processor.from_directory(checkpoint, limits=MediaLimits(max_images=2, max_pixels=10_000), files=False)
    with pytest.raises(MediaError, match="3 pictures, at most 2"):
        strict(ask(1, 2, 3))
    with pytest.raises(MediaError, match="more than 10000"):
        strict(ask(pixels(101, 100)))
    with pytest.raises(MediaError, match="Paths are not accepted"):
        strict(ask(str(tmp_path / "a.png")))


def test_messages_are_checked_before_any_picture_is_loaded(processor: Processor) -> None:
    with pytest.raises(PromptError, match=r"messages\[1\]"):
        processor([*ask("/nowhere.png"), {"role": "nobody", "content": ""}])


def test_views_that_disagree_with_the_prompt_are_refused(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders and patches are counted even if the pixel half goes wrong."""

    def lose_a_patch(*args: Any, **options: Any) -> list[Units]:
        ((unit,),) = genuine(*args, **options)
        return [(replace(unit, patches=unit.patches[1:]),)]

    genuine = module.encode_pages
    monkeypatch.setattr(module, "encode_pages", lose_a_patch)
    with pytest.raises(PromptError, match="patches"):
        processor(ask(pixels(64, 96)))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_id": 1}))
    with pytest.raises(CheckpointError, match=r"<\|image_pad\|> is \d+ in the tokenizer and 1 in config\.json"):
        Processor.from_directory(tmp_path)
    config["text_config"]["vocab_size"] -= 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the model embeds"):
        Processor.from_directory(tmp_path)


def test_a_missing_directory_or_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        Processor.from_directory(tmp_path / "nowhere")
    write_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="preprocessor_config"):
        Processor.from_directory(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"max_num_frames": -5}, {"stack_frames": "x"}, {"max_slice_nums": -3}, {"video_max_slice_nums": 0}],
    ids=lambda options: next(iter(options)),
)
def test_options_are_checked_also_where_nothing_uses_them(processor: Processor, options: dict[str, Any]) -> None:
    for messages in (ask(), ask(pixels(64, 96))):
        with pytest.raises(ConfigError, match=next(iter(options))):
            processor(messages, **options)


def test_too_many_videos_are_refused_before_the_first_is_read(processor: Processor) -> None:
    parts = [{"type": "video", "video": "/nowhere.mp4"}] * (MediaLimits().max_videos + 1)
    with pytest.raises(MediaError, match="5 videos"):
        processor([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}])


def test_settings_of_another_patch_size_are_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 16}))
    with pytest.raises(ConfigError, match="patches of 16"):
        Processor.from_directory(directory)


@pytest.mark.parametrize(
    "own",
    [{"max_num_frames": 500}, {"stack_frames": 64}, {"max_num_frames": 500, "stack_frames": 64}],
    ids="-".join,
)
@pytest.mark.parametrize("limit", [128, 2])
def test_frames_of_a_checkpoint_beyond_the_limits_are_lowered_once(
    own: dict[str, int], limit: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the checkpoint takes where nobody asks fails no request, least of all one without a video."""
    path = write_checkpoint(tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    limits = MediaLimits(max_frames=limit)
    made = Processor.from_directory(tmp_path, limits=limits)
    assert "over the limits of videos" in caplog.text
    caplog.clear()
    assert made(ask()).views == ()
    assert made(ask(pixels(64, 96))).views
    assert made(watch(frames(4, 64, 96))).views
    limits.check_frames(made.video_config.max_num_frames, made.video_config.stack_frames)
    assert not caplog.text
    for asked in ({"max_num_frames": limit + 1}, {"max_num_frames": limit, "stack_frames": 17}):
        with pytest.raises(MediaError, match="too many frames"):
            made(watch(frames(2)), **asked)


def test_frames_within_the_limits_are_the_checkpoints(processor: Processor, caplog: pytest.LogCaptureFixture) -> None:
    assert processor.video_config == processor.image_config
    assert not caplog.text
