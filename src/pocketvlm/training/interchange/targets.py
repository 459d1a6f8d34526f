"""Parts of a model that learn ↔ layers that adapters stand beside, by the published names that other programs use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from pocketvlm.config import ModelConfig
from pocketvlm.model.adapters.names import published_layers
from pocketvlm.training.parts import part_of
from pocketvlm.training.settings import PARTS

DECODER, MERGER, TOWER = "model.language_model", "model.merger", "model.vision_tower"
COMPRESSION = f"{TOWER}.vit_merger"
PREFIXES = {"decoder": DECODER, "merger": MERGER, "compression": COMPRESSION, "tower": TOWER}
_WITHOUT = ("lm_head", "patch_embedding")  # as `training.parts.linear_layers`


@lru_cache(8)
def layers(config: ModelConfig) -> Mapping[str, str]:
    """Published name of each linear layer that an adapter may stand beside → its part, in the order of the model."""
    names = published_layers(config)
    return MappingProxyType({n: part_of(ours) for ours, n in names.items() if not n.endswith(_WITHOUT)})


def layers_of(parts: Iterable[str], config: ModelConfig) -> list[str]:
    """The layers of some parts, in the order of the model."""
    wanted = set(parts)
    return [name for name, part in layers(config).items() if part in wanted]


def parts_of(chosen: Iterable[str], config: ModelConfig) -> tuple[str, ...] | None:
    """The parts whose layers these are; None where they are not all layers of some parts."""
    names, every = set(chosen), layers(config)
    parts = {every[name] for name in names if name in every}
    if not parts or names != set(layers_of(parts, config)):
        return None
    return in_order(parts)


def in_order(parts: Iterable[str]) -> tuple[str, ...]:
    """Parts in the order of `PARTS`."""
    wanted = set(parts)
    return tuple(part for part in PARTS if part in wanted)
