"""Names of layers in adapter files ↔ our parameter names.

PEFT puts `base_model.model.` before the name that the layer has in transformers. Others save the names of other
classes and versions of the same model: the language model's layers are then one level further up or down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from pocketvlm.config import ModelConfig
from pocketvlm.model.adapters.lora import HEAD
from pocketvlm.model.names import our_name, published_names
from pocketvlm.model.vlm import MiniCPMV

PEFT_PREFIX = "base_model.model."
# What stands before the layer's own name elsewhere → in the published layout.
_ELSEWHERE = (
    ("model.language_model.model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("language_model.", "model.language_model."),
    ("llm.model.", "model.language_model."),
    ("llm.lm_head", "lm_head"),
    ("model.layers.", "model.language_model.layers."),
    ("vision_tower.", "model.vision_tower."),
    ("merger.", "model.merger."),
)
_KEY = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B)"
    r"(\.(default|weight|default\.weight))?"
)


def split_key(key: str) -> tuple[str, str] | None:
    """The key of a tensor → (layer, part), such as `lora_A`; None for a key that is none of a LoRA."""
    found = _KEY.fullmatch(key)
    return (found["layer"].removeprefix(PEFT_PREFIX), found["part"]) if found else None


def linear_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shapes [N, K] of all weights that an adapter may update, by our name: those of linear layers."""
    with torch.device("meta"):
        model = MiniCPMV(config)
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    shapes = {f"{name}.weight": model.get_parameter(f"{name}.weight").shape for name in linears}
    shapes[HEAD] = torch.Size((config.text.vocab_size, config.text.hidden_size))
    return shapes


def weight_of(layer: str, shapes: Mapping[str, torch.Size]) -> str | None:
    """A layer's name in a file → our name of its weight; None where the model has no such linear layer."""
    return next((name for name in _candidates(layer) if name in shapes), None)


def _candidates(layer: str) -> Iterator[str]:
    yield our_name(f"{layer}.weight")
    for theirs, published in _ELSEWHERE:
        if layer.startswith(theirs):
            yield our_name(f"{published}{layer[len(theirs) :]}.weight")


def published_layers(config: ModelConfig) -> dict[str, str]:
    """Our name of each weight that can be updated → the layer's published name."""
    with torch.device("meta"):
        names = published_names(MiniCPMV(config))
    shapes = linear_shapes(config)
    return {ours: names.get(ours, "lm_head.weight").removesuffix(".weight") for ours in shapes}
