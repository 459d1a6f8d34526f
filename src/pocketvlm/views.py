"""Sizes and views: the words in which `processing` tells `model` what the patches are.

A *view* is one rectangle of pixels that the tower sees on its own: the overview of a picture, one of its slices, or a
video frame. Views are encoded independently, so each carries its own rate of compression.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.config import DownsampleMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Height and width, in pixels or patches. Keyword-only, so that the two cannot be swapped by position."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class View:
    """One view: its size in patches and its rate of compression."""

    size: Size
    downsample_mode: DownsampleMode

    @property
    def patches(self) -> int:
        return self.size.area

    @property
    def visual_tokens(self) -> int:
        """Tokens this view becomes: patches / 16 or patches / 4."""
        return self.size.area // (16 if self.downsample_mode == "16x" else 4)
