"""Which file of a directory says how pictures are cut: the same one for loading, every export and the commands."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from helpers.checkpoints import write_checkpoint

from pocketvlm.bundle import PRESETS
from pocketvlm.cli import main
from pocketvlm.config import ImageConfig
from pocketvlm.config_files import IMAGE, PROCESSOR, VIDEO, ConfigFiles, read_image_configs
from pocketvlm.errors import ConfigError
from pocketvlm.export.gguf.files import write_gguf
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.vision.pixels import normalise
from pocketvlm.processing.processor import Processor

BRIGHT = {"image_mean": [0.25, 0.5, 0.75]}
PICTURE = np.zeros((900, 1200, 3), dtype=np.uint8)


def write(directory: Path, **files: Any) -> Path:
    """Replace the settings of a directory by `image`, `video` and `processor`, each the content of its file."""
    names = {"image": IMAGE, "video": VIDEO, "processor": PROCESSOR}
    for kind, name in names.items():
        (directory / name).unlink(missing_ok=True)
        if kind in files:
            (directory / name).write_text(json.dumps(files[kind]), encoding="utf-8")
    return directory


def nested(image: Any = None, video: Any = None) -> dict[str, Any]:
    found = {"image_processor": image, "video_processor": video}
    return {"processor_class": "MiniCPMV4_6Processor"} | {k: v for k, v in found.items() if v is not None}


def visual_tokens(directory: Path, kind: str = "image") -> int:
    content = [{"type": kind, kind: PICTURE if kind == "image" else [PICTURE, PICTURE], "fps": 1}]
    if kind == "image":
        del content[0]["fps"]
    return Processor.from_directory(directory)([{"role": "user", "content": content}]).visual_tokens


@pytest.fixture
def weighted(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "model"))


@pytest.mark.parametrize(
    ("files", "pictures", "frames"),
    [
        ({"image": {"max_slice_nums": 2, "max_num_frames": 7}}, 2, 7),
        ({"processor": nested({"max_slice_nums": 3})}, 3, 128),
        ({"processor": nested({"max_slice_nums": 3}), "image": {"max_slice_nums": 2}}, 3, 128),
        ({"processor": nested({"max_slice_nums": 3}, {"max_num_frames": 5}), "video": {"max_num_frames": 6}}, 3, 5),
        ({"processor": nested(None, {"max_num_frames": 5}), "image": {"max_slice_nums": 2}}, 2, 5),
        ({"image": {"max_slice_nums": 2}, "video": {"max_num_frames": 6}}, 2, 6),
        ({"processor": {"max_slice_nums": 8}, "image": {"max_slice_nums": 2}}, 2, 128),
    ],
    ids=["old", "new", "both", "video", "nested video", "old video", "flat"],
)
def test_nested_settings_hold_before_those_of_older_files(
    tmp_path: Path, files: dict[str, Any], pictures: int, frames: int
) -> None:
    image, video = read_image_configs(write(tmp_path, **files))
    assert (image.max_slice_nums, video.max_num_frames) == (pictures, frames)


def test_a_stale_file_changes_no_visual_token(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    stale, current = ImageConfig().to_dict(), ImageConfig(max_slice_nums=1, scale_resolution=224).to_dict()
    write(tmp_path, image=stale)
    before = visual_tokens(tmp_path)
    write(tmp_path, processor=nested(current))
    after = visual_tokens(tmp_path)
    assert before != after
    write(tmp_path, processor=nested(current), image=stale)
    assert visual_tokens(tmp_path) == after


def test_videos_go_by_settings_of_their_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write(tmp_path, processor=nested({"scale_resolution": 448}, {"scale_resolution": 224}))
    narrow, wide = visual_tokens(tmp_path, "video"), visual_tokens(tmp_path)
    write(tmp_path, processor=nested({"scale_resolution": 448}))
    assert narrow < visual_tokens(tmp_path, "video")
    assert visual_tokens(tmp_path) == wide


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no preprocessor_config.json"),
        ({"processor": {"processor_class": "x"}}, "has no preprocessor_config.json"),
        ({"processor": {"image_processor": None}, "image": {}}, "image_processor is None"),
        ({"processor": {"image_processor": [1]}}, "image_processor is"),
        ({"processor": nested({"max_slice_nums": 0})}, "image_processor: max_slice_nums"),
        ({"processor": nested({}, BRIGHT)}, "image_mean is .* of pictures .* of videos"),
    ],
    ids=["none", "flat", "null", "list", "value", "two means"],
)
def test_what_is_missing_or_does_not_fit_is_one_line(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_image_configs(write(tmp_path, **files))


# As transformers saves a processor: every attribute of its class.
SAVED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_center_crop": None,
    "rescale_factor": 0.00392156862745098,
    "resample": 3,
    "size": None,
    "downsample_mode": "16x",
    "data_format": "channels_first",
    "image_processor_type": "MiniCPMV4_6ImageProcessor",
    "auto_map": {"AutoProcessor": "processing.Processor"},
}
SAVED_VIDEO = SAVED | {"do_sample_frames": True, "max_slice_nums": 9, "fps": None, "return_metadata": False}


@pytest.mark.parametrize(
    "change",
    [{}, {"rescale_factor": 0.003921569}, {"rescale_factor": None, "do_normalize": None}, {"max_slice_nums": 1}],
    ids=str,
)
def test_settings_with_the_published_values_pass(tmp_path: Path, change: dict[str, Any]) -> None:
    image, video = read_image_configs(write(tmp_path, processor=nested(SAVED | change, SAVED_VIDEO | change)))
    assert image == video == ImageConfig(**{k: v for k, v in change.items() if k == "max_slice_nums"})
    assert read_image_configs(write(tmp_path, image=SAVED | {"max_slice_nums": 36}))[1].max_slice_nums == 36


@pytest.mark.parametrize(
    "change",
    [
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1},
        {"rescale_factor": "1/255"},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_resize": False},
        {"do_convert_rgb": False},
        {"do_convert_rgb": 1},
        {"resample": 2},
        {"resample": True},
        {"downsample_mode": "4x"},
        {"downsample_mode": ["16x"]},
    ],
    ids=str,
)
def test_settings_that_nobody_here_goes_by_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match=rf"^processor_config\.json: image_processor: {name} is .*, expected"):
        read_image_configs(write(tmp_path, processor=nested(SAVED | change)))
    with pytest.raises(ConfigError, match=rf"^preprocessor_config\.json: {name} is .*, expected"):
        read_image_configs(write(tmp_path, image=SAVED | change))
    for files in ({"processor": nested({}, SAVED_VIDEO | change)}, {"image": {}, "video": SAVED_VIDEO | change}):
        with pytest.raises(ConfigError, match=rf"video.*: {name} is .*, expected") as error:
            read_image_configs(write(tmp_path, **files))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"do_sample_frames": False}, {"max_slice_nums": 4}], ids=str)
def test_settings_of_videos_that_nobody_here_goes_by_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"video_processor: {next(iter(change))} is .*, expected"):
        read_image_configs(write(tmp_path, processor=nested({}, SAVED_VIDEO | change)))
    read_image_configs(write(tmp_path, image=change))


def test_the_mode_of_the_settings_must_be_the_models(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write(tmp_path, image={"downsample_mode": "4x"})
    with pytest.raises(ConfigError, match=r"downsample_mode is '4x', expected 16x\. Give config\.json"):
        ConfigFiles.read(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"downsample_mode": "4x"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ConfigFiles.read(tmp_path).model.downsample_mode == "4x"


def test_what_the_hints_say_makes_the_same_pixels() -> None:
    """Of the reference: (value * rescale_factor - mean) / std."""
    patches = torch.arange(256, dtype=torch.uint8).repeat(3).view(-1, 1, 1, 3)
    values, mean, std = patches.flatten(1).double(), 0.25, 0.5
    for factor, wanted in (
        (1 / 127.5, ImageConfig(image_mean=(mean / 2,) * 3, image_std=(std / 2,) * 3)),
        (1.0, ImageConfig(image_mean=(mean / 255,) * 3, image_std=(std / 255,) * 3)),
    ):
        expected = (values * factor - mean) / std
        torch.testing.assert_close(normalise(patches, wanted).double(), expected, rtol=1e-5, atol=1e-5)
    plain = ImageConfig(image_mean=(0, 0, 0), image_std=(1, 1, 1))
    torch.testing.assert_close(normalise(patches, plain).double(), values / 255, rtol=1e-5, atol=1e-6)


def test_every_reader_takes_the_same_file(weighted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        weighted, processor=nested(ImageConfig(scale_resolution=224).to_dict() | BRIGHT), image=ImageConfig().to_dict()
    )
    assert load_model(weighted).pixel_mean == tuple(BRIGHT["image_mean"])
    projector = gguf.GGUFReader(write_gguf(weighted, tmp_path / "gguf").projector)
    assert projector.fields["clip.vision.image_mean"].contents() == BRIGHT["image_mean"]
    write_bundle(weighted, tmp_path / "onnx", PRESETS["none"])
    assert read_image_configs(tmp_path / "onnx") == read_image_configs(weighted)
    assert main(["info", "--json", "--model", str(weighted)]) == 0
    assert json.loads(capsys.readouterr().out)["scale_resolution"] == 224


@pytest.mark.parametrize("form", ["onnx", "gguf"])
@pytest.mark.parametrize("files", [{}, {"processor": {"processor_class": "x"}}], ids=["neither", "flat"])
def test_an_export_invents_no_settings(
    weighted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, files: dict[str, Any]
) -> None:
    write(weighted, **files)
    assert main(["export", form, str(tmp_path / "out"), "--model", str(weighted)]) == 2
    said = capsys.readouterr().err.strip()
    assert "preprocessor_config.json" in said
    assert "\n" not in said
    assert sorted(tmp_path.iterdir()) == [weighted]
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        write_gguf(weighted, tmp_path / "out") if form == "gguf" else write_bundle(
            weighted, tmp_path / "out", PRESETS["int8"]
        )


def test_weights_without_settings_load_and_say_what_they_took(weighted: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(weighted)
    with caplog.at_level(logging.WARNING, "pocketvlm"):
        model = load_model(weighted)
    assert model.pixel_mean == (0.5, 0.5, 0.5)
    assert [record for record in caplog.records if str(weighted) in record.getMessage()]
