"""The configuration files of a model's directory, read once, and which of them holds for pictures and for videos.

`transformers` 5 writes one `processor_config.json` with the settings of pictures under "image_processor" and those of
videos under "video_processor"; before, each had a file of its own. Where both are there the nested settings hold, as in
the reference: the older file is what another program left behind. Nothing is guessed: a directory without settings of
pictures is refused, as it is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.errors import ConfigError
from pocketvlm.ranges import show
from pocketvlm.text_files import is_there, read_json

PROCESSOR, IMAGE, VIDEO = "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"
GENERATION = "generation_config.json"
# Settings of the reference that have one value here: any other would make other pixels of a picture, or none.
_RESCALE = 1 / 255
_FIXED: Mapping[str, Any] = {
    "do_resize": True,
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": _RESCALE,
    "do_normalize": True,
    "resample": 3,  # bicubic
}
_HINTS = {
    "rescale_factor": "Multiply image_mean and image_std by 1 / 255 / rescale_factor instead.",
    "do_rescale": "Divide image_mean and image_std by 255 instead.",
    "do_normalize": "Give image_mean [0, 0, 0] and image_std [1, 1, 1] instead.",
    "max_slice_nums": "Leave it out, and let requests ask for slices of frames: video_max_slice_nums.",
    "downsample_mode": "Give config.json that downsample_mode: a model has one for pictures and videos.",
}
_FIXED_OF_VIDEOS: Mapping[str, Any] = {**_FIXED, "do_sample_frames": True}
# What the model and its views have once, for pictures and videos alike.
_SHARED = ("patch_size", "image_mean", "image_std")


@dataclass(frozen=True)
class ConfigFiles:
    """What a model's directory says beside weights and tokenizer; without arguments the published MiniCPM-V 4.6.

    Attributes:
        model: shapes (`config.json`).
        image: how pictures are cut.
        video: how the frames of videos are cut, and how many there are.
        generation: content of `generation_config.json`; empty where there is none.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    video: ImageConfig = field(default_factory=ImageConfig)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read them; `ConfigError` where one is missing or does not fit."""
        model = ModelConfig.from_dict(read_json(directory / "config.json"))
        image, video = read_image_configs(directory, model.downsample_mode)
        generation = directory / GENERATION
        return cls(model, image, video, read_json(generation) if is_there(generation) else {})


def read_image_configs(directory: Path, downsample_mode: str = "16x") -> tuple[ImageConfig, ImageConfig]:
    """The settings of pictures and those of videos.

    Args:
        directory: whose files are read.
        downsample_mode: the model's own, which they must not contradict.

    Pictures: "image_processor" of `processor_config.json`, else `preprocessor_config.json`. Videos: "video_processor",
    else `video_preprocessor_config.json`, else those of pictures.

    Raises:
        ConfigError: there are no settings of pictures, a file does not fit or asks for what is not done, or pictures
            and videos differ in what they have in common.
    """
    nested = _nested(directory)
    image = _settings(directory, nested, "image_processor", IMAGE, downsample_mode)
    if image is None:
        raise ConfigError(
            f"{directory} has no preprocessor_config.json, and no processor_config.json with an image_processor",
            hint="Copy the file that came with the weights: how pictures are cut is not guessed.",
        )
    video = _settings(directory, nested, "video_processor", VIDEO, downsample_mode)
    pictures, videos = image[1], image[1] if video is None else video[1]
    for name in _SHARED:
        if video is not None and getattr(pictures, name) != getattr(videos, name):
            raise ConfigError(
                f"{name} is {getattr(pictures, name)!r:.60} of pictures ({image[0]}) and "
                f"{getattr(videos, name)!r:.60} of videos ({video[0]})",
                hint="A model has one for both: give them the value that it was trained with.",
            )
    return pictures, videos


def has_image_config(directory: Path) -> bool:
    """Whether the directory says how pictures are cut."""
    return "image_processor" in _nested(directory) or is_there(directory / IMAGE)


def _nested(directory: Path) -> dict[str, Any]:
    return read_json(directory / PROCESSOR) if is_there(directory / PROCESSOR) else {}


def _settings(
    directory: Path, nested: Mapping[str, Any], key: str, file: str, downsample_mode: str
) -> tuple[str, ImageConfig] | None:
    """(where they stand, the settings); None where the directory has none of this kind."""
    if key in nested:
        where, data = f"{PROCESSOR}: {key}", nested[key]
    elif is_there(directory / file):
        where, data = file, read_json(directory / file)
    else:
        return None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{directory / PROCESSOR}: {key} is {data!r:.40}, expected an object")
    try:
        _check_fixed(data, downsample_mode, of_videos=file == VIDEO)
        return where, ImageConfig.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_fixed(data: Mapping[str, Any], downsample_mode: str, *, of_videos: bool) -> None:
    """Raise `ConfigError` for a setting that asks for what is not done here; null means the default."""
    for name, expected in (_FIXED_OF_VIDEOS if of_videos else _FIXED).items():
        value = data.get(name)
        if value is not None and not _is_same(value, expected):
            raise ConfigError(f"{name} is {show(value)}, expected {expected}", hint=_HINTS.get(name, "Leave it out."))
    # A processor that was saved without a word about these says the defaults of its program.
    allowed: dict[str, tuple[Any, ...]] = {"downsample_mode": (None, "16x", downsample_mode)}
    if of_videos:
        allowed["max_slice_nums"] = (None, 1, ImageConfig().max_slice_nums)
    for name, values in allowed.items():
        if data.get(name) not in values:
            said = " or ".join(str(value) for value in dict.fromkeys(values[1:]))
            raise ConfigError(f"{name} is {show(data[name])}, expected {said}", hint=_HINTS[name])


def _is_same(value: Any, expected: bool | float) -> bool:
    """Whether a setting has this value; of fractions, printed with six digits or more."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    return isinstance(value, (int, float)) and math.isclose(value, expected, rel_tol=1e-5)
