"""Which parameters learn: parts of the model by name, and the linear layers that adapters are put beside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from pocketvlm.model.vlm import MiniCPMV

# Part → beginnings of our parameter names, the longest match counts.
_PREFIXES = {
    "decoder": ("language_model.",),
    "merger": ("merger.",),
    "compression": ("vision_tower.vit_merger.",),
    "tower": ("vision_tower.",),
}


def part_of(name: str) -> str:
    """The part that a parameter or module of our name belongs to."""
    found = [
        (len(prefix), part) for part, prefixes in _PREFIXES.items() for prefix in prefixes if name.startswith(prefix)
    ]
    return max(found)[1]


def linear_layers(model: MiniCPMV, parts: Iterable[str]) -> Iterator[str]:
    """Names of the linear layers of some parts: all of attention, linear attention (`in_proj_qkv`, `in_proj_z`,
    `in_proj_a`, `in_proj_b`, `out_proj`) and the MLPs. Without the head, and without the embedding of patches, which is
    a convolution in the published model."""
    wanted, without = set(parts), ("lm_head", "patch_embedding")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(without) and part_of(name) in wanted:
            yield name


def freeze_all_but(model: MiniCPMV, parts: Iterable[str]) -> None:
    """Let the parameters of some parts learn, and no others."""
    wanted = set(parts)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters that learn, and all."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
