"""Names, shapes and order of values in the published layout ↔ ours: what files of weights and of adapters share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pocketvlm.config import ModelConfig, VisionConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

PATCH_EMBEDDING = "vision_tower.patch_embedding.weight"
# (published prefix, our prefix), first match wins; everything else keeps its name behind "model.".
_PREFIXES = (
    ("model.vision_tower.embeddings.", "vision_tower."),
    ("model.vision_tower.encoder.", "vision_tower."),
    ("model.merger.mlp.0.", "merger."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
)


def published_names(model: nn.Module) -> dict[str, str]:
    """Our parameter name → the published one, for every parameter of the model."""
    return {ours: published_name(ours) for ours, _ in model.named_parameters()}


def published_name(ours: str) -> str:
    """Our name of a parameter, or of a module, → the published one."""
    if ours.startswith(("vision_tower.patch_embedding", "vision_tower.position_embedding")):
        return ours.replace("vision_tower.", "model.vision_tower.embeddings.", 1)
    if ours.startswith("vision_tower.layers."):
        return ours.replace("vision_tower.", "model.vision_tower.encoder.", 1)
    if ours.startswith("merger."):
        return ours.replace("merger.", "model.merger.mlp.0.", 1)
    if ours.startswith("language_model.lm_head"):
        return ours.replace("language_model.", "", 1)
    return f"model.{ours}"


def our_name(published: str) -> str:
    """The published name → our parameter name."""
    for theirs, ours in _PREFIXES:
        if published.startswith(theirs):
            return ours + published[len(theirs) :]
    return published


def import_tensor(ours: str, tensor: Tensor) -> Tensor:
    """Published values → ours: the patch convolution becomes a linear layer over channels-last patches."""
    return tensor.permute(0, 2, 3, 1).flatten(1) if ours == PATCH_EMBEDDING else tensor


def import_array(ours: str, array: NDArray[Any]) -> NDArray[Any]:
    """`import_tensor`, of NumPy; some of the published rows become these rows of ours."""
    return array.transpose(0, 2, 3, 1).reshape(len(array), -1) if ours == PATCH_EMBEDDING else array


def published_shape(ours: str, shape: Sequence[int], config: ModelConfig) -> tuple[int, ...]:
    """Shape in the file of a parameter that has `shape` here."""
    vision = config.vision
    if ours == PATCH_EMBEDDING:
        return vision.hidden_size, vision.num_channels, vision.patch_size, vision.patch_size
    return tuple(shape)


def export_tensor(ours: str, tensor: Tensor, vision: VisionConfig) -> Tensor:
    """Our values → published ones: what `import_tensor` does, undone."""
    if ours == PATCH_EMBEDDING:
        side = vision.patch_size
        return tensor.detach().unflatten(1, (side, side, vision.num_channels)).permute(0, 3, 1, 2).contiguous()
    return tensor.detach().contiguous()
