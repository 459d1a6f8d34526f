"""What of an encoded picture, frame or prompt decides its features: for comparing two of them."""

from __future__ import annotations

from typing import Any


def content_of(encoded: Any) -> tuple[object, bytes]:
    """Views and pixels of `ImageViews` or `ModelInputs`."""
    return encoded.views, encoded.patches.numpy().tobytes()
