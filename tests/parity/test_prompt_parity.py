"""Messages to ids, pixels and sizes: equal to the reference's processor, from one and the same directory."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from helpers.checkpoints import NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketvlm.config_files import ConfigFiles
from pocketvlm.model.hub import resolve
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.processing.inputs import ModelInputs
from pocketvlm.processing.processor import Processor

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    return reference.transformers.AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Processor:
    return Processor.from_directory(checkpoint)


def image(height: int, width: int) -> dict[str, Any]:
    pixels = np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": pixels}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def for_reference(messages: Messages) -> Messages:
    """The same messages in the reference's dialect: pictures channels first, tool-call arguments as mappings."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image":
                part["image"] = torch.from_numpy(part["image"]).permute(2, 0, 1)
        for call in message.get("tool_calls", ()):
            if isinstance(call["function"]["arguments"], str):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def reference_inputs(theirs: Any, messages: Messages, options: dict[str, Any], **template: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy deprecates how the reference sums up tensors
        return theirs.apply_chat_template(
            for_reference(messages),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=dict(options),  # written to
            **({"add_generation_prompt": True} | template),
        )


def assert_equal_inputs(mine: ModelInputs, expected: Any, ours: Processor, suffix: str = "") -> None:
    assert mine.input_ids.tolist() == expected["input_ids"][0].tolist()
    if not mine.views:
        assert f"pixel_values{suffix}" not in expected
        return
    sizes = [[view.size.height, view.size.width] for view in mine.views]
    assert sizes == expected[f"target_sizes{suffix}"].tolist()
    values = to_reference_layout(mine.patches, ours.image_config)
    assert torch.equal(values, expected[f"pixel_values{suffix}"])


SYSTEM = {"role": "system", "content": "Answer in the user's language.  "}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für <b>eine</b> Stadt & \"mehr\"",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "time"}},
]  # fmt: skip


def tool_calls(*arguments: Any) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "type": "function", "function": {"name": "weather", "arguments": value}}
        for i, value in enumerate(arguments)
    ]


PICTURES: dict[str, Messages] = {
    "one-small": [user(image(64, 96), text("What is it?"))],
    "one-exact": [user(text("Before"), image(448, 448))],
    "one-sliced": [SYSTEM, user(image(820, 1084), text("Read the image.\nAnd the slice."))],
    "one-tall": [user(image(900, 300), text("?"))],
    "three": [user(image(300, 500), text("and"), image(900, 700), image(100, 40), text("differ in the image"))],
    "multi-turn": [
        SYSTEM,
        user(image(500, 600), text("First?")),
        {"role": "assistant", "content": "A cat."},
        user(text("And here?"), image(200, 200)),
        {"role": "assistant", "content": "<think>\nLook.\n</think>\n\nA dog."},
        user("Both?"),
    ],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "unsliced": {"max_slice_nums": 1},
    "4x": {"downsample_mode": "4x"},
    "4x-unsliced": {"downsample_mode": "4x", "max_slice_nums": 1},
    "no-image-id": {"use_image_id": False},
    "36-slices": {"max_slice_nums": 36},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("messages", PICTURES.values(), ids=PICTURES)
def test_prompts_with_pictures_equal_the_reference(
    theirs: Any, ours: Processor, messages: Messages, options: dict[str, Any]
) -> None:
    assert_equal_inputs(ours(messages, **options), reference_inputs(theirs, messages, options), ours)


def clip(count: int, height: int, width: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


CLIPS: dict[str, tuple[Any, float]] = {
    "three-seconds": (clip(6, 240, 320), 2.0),
    "part-of-a-second": (clip(7, 300, 200), 2.0),
    "large": (clip(4, 700, 900), 1.0),
    "long": (clip(12, 64, 96), 1.0),
}
VIDEO_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "two-stacked": {"stack_frames": 2},
    "four-stacked": {"stack_frames": 4},
    "few-frames": {"max_num_frames": 5},
    "few-stacked": {"max_num_frames": 5, "stack_frames": 3},
    "4x": {"downsample_mode": "4x"},
    "no-id": {"use_image_id": False},
    "sliced": {"max_slice_nums": 4},
}


@pytest.mark.parametrize("options", VIDEO_OPTIONS.values(), ids=VIDEO_OPTIONS)
@pytest.mark.parametrize("video", CLIPS.values(), ids=CLIPS)
def test_prompts_with_a_video_equal_the_reference(
    theirs: Any, ours: Processor, video: tuple[Any, float], options: dict[str, Any]
) -> None:
    frames, fps = video
    metadata = {"total_num_frames": len(frames), "fps": fps, "duration": len(frames) / fps}
    mine = dict(options)
    mine["video_max_slice_nums"] = mine.pop("max_slice_nums", 1)
    part = {"type": "video", "video": frames}
    expected = reference_inputs(
        theirs,
        [SYSTEM, user(part, text("What happens?"))],
        {"max_slice_nums": 1, "video_metadata": [metadata]} | options,
    )
    assert_equal_inputs(
        ours([SYSTEM, user(part | {"fps": fps}, text("What happens?"))], **mine), expected, ours, "_videos"
    )


def test_a_picture_and_a_video_are_numbered_as_in_the_reference(theirs: Any, ours: Processor) -> None:
    frames, fps = CLIPS["three-seconds"]
    part = {"type": "video", "video": frames}
    parts = [image(300, 400), part, image(64, 96)]
    metadata = {"total_num_frames": len(frames), "fps": fps, "duration": len(frames) / fps}
    expected = reference_inputs(theirs, [user(*parts)], {"max_slice_nums": 1, "video_metadata": [metadata]})
    parts[1] = part | {"fps": fps}
    assert ours([user(*parts)], max_slice_nums=1).input_ids.tolist() == expected["input_ids"][0].tolist()


CONVERSATIONS: dict[str, Messages] = {
    "question": [user("hi")],
    "whitespace": [SYSTEM, user("  \n the café and \u00e9 e\u0301 \n\n")],
    "empty": [user("")],
    "system-parts": [{"role": "system", "content": [text("a"), text("b")]}, user(text("c"), text("d"))],
    "thought": [user("q"), {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nanswer"}, user("q")],
    "thought-last": [user("q"), {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nanswer"}],
    "reasoning": [user("q"), {"role": "assistant", "content": "answer", "reasoning_content": " why "}],
    "tool-calls": [
        SYSTEM,
        user("q"),
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": tool_calls('{"city": "Köln", "days": 3, "exact": true, "near": ["a", {"b": null}]}', {}),
        },
        {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "0"},
        {"role": "tool", "content": [text("none"), text("left")]},
        {"role": "assistant", "content": "Warm."},
        user("Thanks!"),
    ],
    "tool-calls-only": [
        user("q"),
        {"role": "assistant", "content": "", "tool_calls": tool_calls({"city": "Rom"})},
        {"role": "tool", "content": "hot"},
    ],
    "tool-calls-as-text": [
        user("q"),
        {"role": "assistant", "content": "<tool_call>\n<function=time>\n</function>\n</tool_call>"},
        {"role": "tool", "content": "noon"},
    ],
}


@pytest.mark.parametrize("generation", [True, False], ids=["generate", "finished"])
@pytest.mark.parametrize("thinking", [True, False], ids=["thinking", "direct"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversations_equal_the_reference(
    theirs: Any, ours: Processor, messages: Messages, tools: Any, thinking: bool, generation: bool
) -> None:
    options = {"tools": tools, "enable_thinking": thinking, "add_generation_prompt": generation}
    assert_equal_inputs(ours(messages, **options), reference_inputs(theirs, messages, {}, **options), ours)
    rendered = ours.chat_template.render(messages, **options)
    assert rendered.text == theirs.apply_chat_template(for_reference(messages), **options)


# Ordinary text: anything but the control tokens themselves, brackets and pipes included.
characters = st.one_of(st.sampled_from("<>|/ \n\tthe imageé\u0301"), st.characters(exclude_categories=["Cs"]))
ordinary = st.text(characters).filter(lambda words: not any(name in words for name in NAMES))
# The reference's own safeguard lets through tokens that are neither special nor in the template, and its processor
# still counts a typed placeholder as a missing picture.
_not_there = ("<|fim", "<|repo", "<|file", "<|image_pad", "<|video_pad")
guarded = [name for name in NAMES if not name.startswith(_not_there)]


@given(ordinary, ordinary, ordinary)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ordinary_text_gives_the_references_ids(theirs: Any, ours: Processor, a: str, b: str, c: str) -> None:
    messages = [{"role": "system", "content": a}, user(b), {"role": "assistant", "content": c}, user(c + b)]
    assert ours(messages).input_ids.tolist() == reference_inputs(theirs, messages, {})["input_ids"][0].tolist()


@given(ordinary, st.sampled_from(guarded), ordinary)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_typed_control_tokens_give_the_ids_of_the_references_own_safeguard(
    theirs: Any, ours: Processor, before: str, name: str, after: str
) -> None:
    """The reference can keep control tokens out of user text as well, when asked to: both agree on the ids."""
    messages = [user(before + name + after)]
    expected = reference_inputs(theirs, messages, {}, sanitize_control_tokens=True)
    assert ours(messages).input_ids.tolist() == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("stale", [False, True], ids=["alone", "beside a stale file"])
def test_a_directory_that_the_reference_saved_is_read_as_it_reads_it(
    theirs: Any, checkpoint: Path, tmp_path: Path, stale: bool
) -> None:
    """It writes processor_config.json only; a preprocessor_config.json that is left beside it no longer holds."""
    saved = copy.deepcopy(theirs)
    saved.image_processor.scale_resolution = 224
    saved.image_processor.max_slice_nums = 4
    saved.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    shutil.copy(checkpoint / "config.json", tmp_path)
    if stale:
        shutil.copy(checkpoint / "preprocessor_config.json", tmp_path)
    messages = [user(image(500, 700), text("?"))]
    again, mine = reference.transformers.AutoProcessor.from_pretrained(tmp_path), Processor.from_directory(tmp_path)
    assert_equal_inputs(mine(messages), reference_inputs(again, messages, {}), mine)
    assert mine(messages).visual_tokens < Processor.from_directory(checkpoint)(messages).visual_tokens


@pytest.mark.parametrize(
    "kept",
    [
        {"processor_config.json"},
        {"preprocessor_config.json", "video_preprocessor_config.json"},
        {"processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"},
    ],
    ids=["of version 5", "of version 4", "all"],
)
def test_the_checkpoint_that_we_write_is_found_by_readers_of_either_version(tmp_path: Path, kept: set[str]) -> None:
    """Its settings of pictures and videos stand in every file that one of them looks for, and say the same."""
    nano = resolve("nano").path
    shutil.copytree(nano, tmp_path / "nano")
    for name in {path.name for path in nano.glob("*processor_config.json")} - kept:
        (tmp_path / "nano" / name).unlink()
    theirs = reference.transformers.AutoProcessor.from_pretrained(tmp_path / "nano")
    assert theirs.image_processor.scale_resolution == theirs.video_processor.scale_resolution == 224
    assert ConfigFiles.read(tmp_path / "nano") == ConfigFiles.read(nano)
    ours, messages = Processor.from_directory(tmp_path / "nano"), [user(image(300, 500), text("?"))]
    mode = {"downsample_mode": "16x"}
    assert_equal_inputs(ours(messages, **mode), reference_inputs(theirs, messages, mode), ours)
