"""Tiny models with random weights, and random input for them: no files, no reference implementation.

A *picture* here is what the processor would hand over: views and their patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from helpers.checkpoints import tiny_config
from pocketvlm.config import DownsampleMode, ModelConfig
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import Size, View

CONFIG = tiny_config()


def with_text(**changes: Any) -> ModelConfig:
    """The tiny configuration with other decoder shapes."""
    return replace(CONFIG, text=replace(CONFIG.text, **changes))


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights, large enough that every layer matters: matrices by fan-in, vectors about their own start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):  # decays that a few tokens outlive, as in checkpoints.py
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 + 0.05).log())
        elif parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=8)
def tiny_model(seed: int = 0, config: ModelConfig = CONFIG) -> MiniCPMV:
    """A model with random weights. Shared between tests: do not change it."""
    model = MiniCPMV(config)
    randomise(model, seed)
    return model


def view(height: int, width: int, mode: DownsampleMode = "16x") -> View:
    """A view of height x width patches."""
    return View(Size(height=height, width=width), mode)


def random_patches(views: Sequence[View], seed: int = 0) -> Tensor:
    """uint8 [P, 14, 14, 3] for these views."""
    generator = torch.Generator().manual_seed(seed)
    side, channels = CONFIG.vision.patch_size, CONFIG.vision.num_channels
    shape = (sum(v.patches for v in views), side, side, channels)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def random_text(length: int, seed: int = 0) -> list[int]:
    """Ids of plain bytes: no placeholder among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()


def prompt_with_views(
    views: Sequence[View], *, before: int = 5, after: int = 7, seed: int = 0, pad: int = CONFIG.image_token_id
) -> list[int]:
    """Random text with the places held for each view by `pad`, a separator of text between them."""
    ids = random_text(before, seed)
    for i, one in enumerate(views):
        ids += [pad] * one.visual_tokens + random_text(1, seed + i)
    return ids + random_text(after, seed + 1)


MODES: st.SearchStrategy[DownsampleMode] = st.sampled_from(["16x", "4x"])


@st.composite
def view_lists(draw: st.DrawFn, max_size: int = 4) -> list[View]:
    """A few small views of different shapes and rates."""
    side = st.sampled_from([4, 8, 12])
    return [view(draw(side), draw(side), draw(MODES)) for _ in range(draw(st.integers(1, max_size)))]
