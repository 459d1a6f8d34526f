"""16x or 4x at random for each view: a model that is tuned so serves at both rates, and at mixtures of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.patches.image import ImageViews
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.expansion import Units


def with_random_rates(processor: Processor, seed: Sequence[int]) -> Processor:
    """A processor as the one given, of which every second view on average is raised to 4x.

    Meant for `downsample_mode="auto"` and a budget of 1, which plans all views at 16x in sizes that suit both rates.

    Args:
        seed: decides which ones, with the place of a view in its prompt; numbers below 2³².
    """
    made, generator = copy.copy(processor), np.random.RandomState(list(seed))

    def raised(unit: ImageViews) -> ImageViews:
        draws = generator.randint(2, size=len(unit.views))
        pairs = zip(unit.views, draws, strict=True)
        return replace(unit, views=tuple(replace(view, downsample_mode="4x") if up else view for view, up in pairs))

    def encode(task: MediaTask) -> list[Units]:
        return [tuple(raised(unit) for unit in units) for units in processor.encode(task)]

    made.encode = encode
    return made
