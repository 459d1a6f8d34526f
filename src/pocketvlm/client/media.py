"""Pictures and videos → parts of a message, their bytes within it: an endpoint cannot read files of this machine."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.encode import encode_png
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.load_image import is_video, load_pages
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.media.sources import describe, existing_file
from pocketvlm.remote_files import is_remote, read_remote

_RESOLUTION = Resolution()
_IMAGE_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
# What animations that are seen as a video have, and where.
_ANIMATION_TYPES = ((0, b"GIF8", "image/gif"), (8, b"WEBP", "image/webp"), (0, b"\x89PNG", "image/png"))


def media_parts(medium: Any, *, as_video: bool = False, resolution: Resolution = _RESOLUTION) -> list[dict[str, Any]]:
    """A path, bytes, pixels, or a URL, which goes as it is; a document becomes a picture for each of its pages.

    Args:
        as_video: an animation is to be seen as a video, not as the picture that it begins with.
        resolution: of pages that have no pixels of their own.

    Raises:
        MediaError: a file that cannot be read, or holds no picture.
    """
    kind = "video" if as_video or is_video(medium) else "image"
    if isinstance(medium, str) and (is_url(medium) or is_data_url(medium)):
        return [{"type": f"{kind}_url", f"{kind}_url": {"url": medium}}]
    if kind == "video" and isinstance(medium, str) and is_remote(medium):
        try:
            medium = read_remote(medium)
        except ConfigError as error:  # as a file that is not there
            raise MediaError(str(error)) from None
    if isinstance(medium, Path | bytes) and split_pages(medium)[1] is None:
        content = _read_file(medium)
        if kind == "video":
            of_kind = (media_type for place, magic, media_type in _ANIMATION_TYPES if content.startswith(magic, place))
            return [data_url("video", next(of_kind, "video/mp4"), content)]
        # Files that every endpoint reads go as they are; all others are decoded here.
        for magic, media_type in _IMAGE_TYPES:
            if content.startswith(magic):
                return [data_url("image", media_type, content)]
    return [data_url("image", "image/png", encode_png(page)) for page in load_pages(medium, resolution=resolution)]


def page_resolution(options: Mapping[str, Any]) -> Resolution:
    """Of pages that are drawn here, by the options of a request: the endpoint cannot draw them again."""
    return Resolution.of(ImageConfig(), options.get("max_slice_nums"), options.get("page_dpi"))


def data_url(kind: str, media_type: str, content: bytes) -> dict[str, Any]:
    """A part of kind "image" or "video" with these bytes."""
    url = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _read_file(medium: Path | bytes) -> bytes:
    if isinstance(medium, bytes):
        return medium
    try:
        return existing_file(medium, describe(medium)).read_bytes()
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{medium} cannot be read: {reason}", hint="Check the path.") from None
