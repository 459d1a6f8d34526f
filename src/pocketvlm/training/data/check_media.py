"""The pictures and videos of a sample, opened before training: what their headers say, or every pixel of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.fetch import is_url
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_pages, probe_pages
from pocketvlm.processing.media.pages import PageBudget, TooManyPagesError
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.training.data.sample import Sample, SampleError

_LIMITS = MediaLimits()


def media_of_sample(sample: Sample) -> Iterator[tuple[Literal["image", "video"], str | bytes, str]]:
    """(kind, source, place in the messages) of each medium, in order."""
    for number, message in enumerate(sample.messages):
        for index, part in enumerate(message["content"] if isinstance(message["content"], list) else ()):
            if part["type"] == "text":
                continue
            source: Any = part[part["type"]]
            place = f"messages[{number}].content[{index}]"
            kind: Literal["image", "video"] = "image" if part["type"].startswith("image") else "video"
            yield kind, source["url"] if isinstance(source, Mapping) else source, place


def check_media(sample: Sample, limits: MediaLimits = _LIMITS, *, decode: bool = False) -> None:
    """Open every medium of a sample that is not on the network.

    Args:
        limits: as the processor has them; beyond them a picture is refused.
        decode: read all pixels of pictures, so that damage behind the header is found. Of a video it would not be: in
            the place of a frame that cannot be decoded the one before it is taken, as at inference.

    Raises:
        SampleError: one cannot be read, or is over a limit.
    """
    kinds = [kind for kind, _, _ in media_of_sample(sample)]
    try:
        limits.check_counts(kinds.count("image"), kinds.count("video"))
    except MediaError as error:
        raise SampleError(sample.source, str(error)) from None
    budget = PageBudget(limits, kinds.count("image"))
    for kind, source, place in media_of_sample(sample):
        if isinstance(source, str) and is_url(source):
            continue
        try:
            if kind == "image":
                if decode:
                    for _ in load_pages(source, limits, budget=budget):
                        pass
                else:
                    probe_pages(source, limits, budget=budget)
                continue
            with open_video(source, None, limits, files=True):
                pass
        except TooManyPagesError as error:  # of all documents together
            raise SampleError(sample.source, str(error)) from None
        except MediaError as error:
            raise SampleError(sample.source, f"{place}: {error}") from None
