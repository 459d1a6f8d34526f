"""Pictures, documents and videos of one request → their views, each cut into patches; here, or in another process.

A document is a picture that becomes as many units as it has pages, or as were chosen.

A task holds everything that decides the patches, so that it can be sent away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pocketvlm.config import DownsampleOption, ImageConfig
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_pages
from pocketvlm.processing.media.pages import PageBudget, TooManyPagesError
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.page_previews import previews_of
from pocketvlm.processing.patches.image import Pixels, encode_pages
from pocketvlm.processing.patches.video import encode_video
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.prompt.expansion import Units
from pocketvlm.processing.prompt.messages import MediaPart


@dataclass(frozen=True)
class MediaTask:
    """What to encode, and how.

    Attributes:
        parts: pictures and videos in prompt order.
        modes: the rate of each; of a document, that of all its pages.
        budget: of each, with "auto".
        how: what the request says of pictures.
        image_config, video_config, limits, files: see `Processor`.
        patches: False leaves them out of what is returned, for those who want to know only how it would be cut.
        preview: pixels of the side of a square; each page is one view of so many pixels then, see
            `processing.page_previews`, and of a document of which nothing was chosen the first pages are taken.
    """

    parts: tuple[MediaPart, ...]
    modes: tuple[DownsampleOption, ...]
    budget: float
    how: PictureOptions
    image_config: ImageConfig
    video_config: ImageConfig
    limits: MediaLimits
    files: bool
    patches: bool = True
    preview: int | None = None


MediaEncoder = Callable[[MediaTask], list[Units]]


def encode_media(task: MediaTask) -> list[Units]:
    """The units of each part, in their order.

    Raises:
        MediaError: a picture or video cannot be read or is over a limit; the message names its place.
        ConfigError: an option has a value that cannot be honoured.
    """
    if task.preview is not None:
        return [previews_of(part, task.preview, task.limits, task.files) for part in task.parts]
    encoded: dict[int, Units] = {}
    # Pictures of one mode and one limit go together, so that they are decoded and cut in parallel.
    wanted = [part.max_slice_nums or task.how.max_slice_nums for part in task.parts]
    pictures = [i for i, part in enumerate(task.parts) if part.kind == "image"]

    budget = PageBudget(task.limits, len(pictures))

    def load(part: MediaPart) -> Iterator[Pixels]:
        resolution = Resolution.of(task.image_config, part.max_slice_nums or task.how.max_slice_nums, task.how.page_dpi)
        try:
            yield from load_pages(part.source, task.limits, files=task.files, resolution=resolution, budget=budget)
        except TooManyPagesError:  # none of them alone
            raise
        except MediaError as error:
            raise MediaError(f"{part.where}: {error}") from None

    for mode, slices in dict.fromkeys((task.modes[i], wanted[i]) for i in pictures):
        chosen = [i for i in pictures if (task.modes[i], wanted[i]) == (mode, slices)]
        views = encode_pages(
            [task.parts[i] for i in chosen],
            task.image_config,
            mode,
            slices,
            auto_token_budget=task.budget if mode == "auto" else None,
            load=load,
        )
        encoded |= dict(zip(chosen, views, strict=True))
    for i, part in enumerate(task.parts):
        if part.kind == "video":
            encoded[i] = _encode_video(part, task.modes[i], task)
    if not task.patches:
        encoded = {i: tuple(replace(unit, patches=unit.patches[:0]) for unit in units) for i, units in encoded.items()}
    return [encoded[i] for i in range(len(task.parts))]


def _encode_video(part: MediaPart, mode: DownsampleOption, task: MediaTask) -> Units:
    try:
        views = encode_video(
            part.source,
            task.video_config,
            mode,
            part.max_slice_nums or task.how.video_max_slice_nums,
            auto_token_budget=task.budget if mode == "auto" else None,
            max_num_frames=task.how.max_num_frames,
            stack_frames=task.how.stack_frames,
            fps=part.fps,
            limits=task.limits,
            files=task.files,
        )
    except MediaError as error:
        raise MediaError(f"{part.where}: {error}") from None
    return views.units
