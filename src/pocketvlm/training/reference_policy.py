"""The model that a run of preferences began with: the base without its adapters, or a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.lora import import_peft
from pocketvlm.training.settings import TuneSettings


def reference_policy(model: MiniCPMV, settings: TuneSettings) -> Callable[[MiniCPMV], AbstractContextManager[MiniCPMV]]:
    """What `Preferences` takes. With full fine-tuning the model is in memory twice."""
    if settings.method == "full":
        before = copy.deepcopy(model).requires_grad_(False).eval()
        return lambda _model: nullcontext(before)
    return without_adapters


@contextmanager
def without_adapters(model: MiniCPMV) -> Iterator[MiniCPMV]:
    """Within the block the adapters of a model add nothing."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, import_peft().tuners.tuners_utils.BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)
