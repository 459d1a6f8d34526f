"""The options of pictures and videos that a request may have: their names, kinds and words for people, in one place.

`Processor` takes them, `api` tells them from those of sampling, `protocol` reads them from `mm_processor_kwargs`, and
the command line offers those that have a `help`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pocketvlm.config import DownsampleOption
from pocketvlm.config_ranges import IMAGE
from pocketvlm.ranges import Range, check_all

# As `protocol.fields.check` calls them.
OptionKind = Literal["string or list of strings", "number", "integer", "boolean"]


def _about(kind: OptionKind, text: str = "", *, of: str = "pictures") -> dict[str, str]:
    return {"kind": kind, "help": text, "of": of}


# Checked also where no medium of a kind is there: an option that is wrong is refused, not overlooked.
RANGES = {
    name: replace(IMAGE[name.removeprefix("video_")], nullable=True)
    for name in ("max_slice_nums", "max_num_frames", "stack_frames", "video_max_slice_nums")
} | {"page_dpi": Range(int, 10, 1200, nullable=True)}


@dataclass(frozen=True)
class PictureOptions:
    """How the pictures and videos of one request are seen. None: as the checkpoint says.

    Attributes:
        downsample_mode: "16x" or "4x" for all views; "auto": the pixels of each view decide; or one of these for each
            picture, document and video in prompt order.
        auto_token_budget: most visual tokens of each picture and video with "auto", as a multiple of those of 16x, from
            1.0 to 4.0; 1.5 when None.
        max_slice_nums: most slices of a picture beside its overview. A picture or video that has its own, or `detail`
            "low", in its message goes by that.
        page_dpi: dots per inch of the pages of a PDF. None: 200, or the pixels of the scan that a page is, but no more
            than all slices of a picture hold.
        max_num_frames: most frames of a video.
        stack_frames: frames shown for each second of a video, the extra ones side by side in one picture; 1 means no
            such picture.
        use_image_id: number the pictures in the prompt.
        use_video_id: number the videos as well; as `use_image_id` when None, which is what the reference does. The
            model's authors recommend False.
        video_max_slice_nums: most slices of each frame.

    Raises:
        ConfigError: a number is none, or out of its range.
    """

    downsample_mode: DownsampleOption | Sequence[DownsampleOption] | None = field(
        default=None,
        metadata=_about(
            "string or list of strings",
            "16x; 4x: four times the visual tokens, finer detail; auto: 4x where the print is small, within the budget "
            "(default: the model's own)",
        ),
    )
    auto_token_budget: float | None = field(
        default=None,
        metadata=_about("number", "most visual tokens of auto, as a multiple of 16x: 1.0 to 4.0 (default 1.5)"),
    )
    max_slice_nums: int | None = field(
        default=None,
        metadata=_about(
            "integer", "most slices of a picture, not of a video (default 9; 36 for fine print, 1 for none)"
        ),
    )
    page_dpi: int | None = field(
        default=None,
        metadata=_about("integer", "dots per inch of a PDF's pages (default: at most 200, as many as the slices hold)"),
    )
    max_num_frames: int | None = field(
        default=None, metadata=_about("integer", "most frames of a video (default 128)", of="videos")
    )
    stack_frames: int | None = field(
        default=None, metadata=_about("integer", "frames shown for each second of a video (default 1)", of="videos")
    )
    use_image_id: bool | None = field(default=None, metadata=_about("boolean"))
    use_video_id: bool | None = field(default=None, metadata=_about("boolean", of="videos"))
    video_max_slice_nums: int = field(default=1, metadata=_about("integer", of="videos"))

    def __post_init__(self) -> None:
        check_all(RANGES, self)


# Name → kind of each option.
PICTURE_OPTIONS: Mapping[str, OptionKind] = {option.name: option.metadata["kind"] for option in fields(PictureOptions)}


def option_help(of: str) -> dict[str, tuple[OptionKind, str]]:
    """Name → (kind, words for people) of the options "of" pictures or of videos that a command line offers."""
    return {
        option.name: (option.metadata["kind"], option.metadata["help"])
        for option in fields(PictureOptions)
        if option.metadata["of"] == of and option.metadata["help"]
    }


def merged_options(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one request among many, its own before those that all have. A budget that all have is of "auto":
    none where the request's own mode is another one, for all its pictures."""
    found = {**shared, **own}
    mode = own.get("downsample_mode") or "auto"
    if mode != "auto" and not (isinstance(mode, list | tuple) and "auto" in mode) and "auto_token_budget" not in own:
        found.pop("auto_token_budget", None)
    return found
