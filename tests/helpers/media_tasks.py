"""Media as what decodes them is given them."""

from __future__ import annotations

from typing import Any

from pocketvlm.model.directory import ModelDirectory
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.prompt.messages import MediaPart


def task_of(directory: ModelDirectory, *sources: Any, kind: Any = "image", mode: Any = "16x") -> MediaTask:
    parts = tuple(MediaPart(kind, source, f"place {i}") for i, source in enumerate(sources))
    config = directory.image_config
    return MediaTask(parts, (mode,) * len(parts), 1.5, PictureOptions(), config, config, MediaLimits(), False)


def content(source: Any) -> dict[str, Any]:
    """A message that asks about a picture."""
    return {"role": "user", "content": [{"type": "image", "image": source}, {"type": "text", "text": "What?"}]}
