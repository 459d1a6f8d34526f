"""Adapters for tests, with random values large enough that every layer of them matters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from pocketvlm.config import ModelConfig
from pocketvlm.model.adapters.lora import HEAD, Adapter, LowRankUpdate
from pocketvlm.model.adapters.names import linear_shapes
from pocketvlm.model.adapters.peft_folder import read_adapter
from pocketvlm.model.adapters.write import write_adapter

DECODER = r"language_model\.layers\."
VISION = r"(vision_tower|merger)\."
ALL = rf"{DECODER}|{VISION}"


def random_adapter(
    config: ModelConfig, seed: int, layers: str = DECODER, *, rank: int = 4, size: float = 0.5, dora: bool = False
) -> Adapter:
    """An adapter of the linear layers whose names begin as the expression `layers` says.

    Args:
        size: of the update beside weights drawn by fan-in.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name, (outputs, inputs) in linear_shapes(config).items():
        if re.match(layers, name) and (name != HEAD or "lm_head" in layers):
            a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            b = torch.randn(outputs, rank, generator=generator) * rank**-0.5
            magnitude = torch.rand(outputs, generator=generator) + 0.5 if dora else None
            updates[name] = LowRankUpdate(a, b, size, magnitude)
    return Adapter(Path(), f"{seed}", updates)


def write_random_adapter(
    folder: Path, config: ModelConfig, seed: int, layers: str = DECODER, *, dora: bool = False, size: float = 0.5
) -> Path:
    """The same as a folder; returns it."""
    write_adapter(random_adapter(config, seed, layers, dora=dora, size=size), folder, config)
    return folder


def read_all(folders: Sequence[Path], config: ModelConfig) -> list[Adapter]:
    return [read_adapter(folder, config) for folder in folders]
