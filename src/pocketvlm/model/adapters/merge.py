"""An adapter becomes part of a model's weights: numbers as of PEFT's `merge_and_unload`, rounded once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pocketvlm.errors import CheckpointError
from pocketvlm.kernels.linear import fp16_linear
from pocketvlm.kernels.linear.choice import cpu_linears
from pocketvlm.model.adapters.lora import HEAD, Adapter
from pocketvlm.model.vlm import MiniCPMV


@torch.no_grad()
def merge(model: MiniCPMV, adapter: Adapter, *, dtype: torch.dtype | None = None, narrow: bool = False) -> MiniCPMV:
    """Put the updates into `model`, in place; call it before `use_cpu_kernels`.

    A head that is tied to the embedding becomes a weight of its own where it is updated, and the model's configuration
    says so: as a part of the embedding the update would change what the model reads.

    Args:
        dtype: of the weights that are updated; None leaves each its own, in which a small update may be rounded away.
        narrow: round those that are bfloat16 to fp16 instead, 11 bits for 8, where their range allows: for layers that
            hold weights in fp16 (`kernels.linear.fp16_linear`).

    Raises:
        CheckpointError: the model has CPU kernels, which keep no plain weights.
    """
    if any(cpu_linears(model)):
        raise CheckpointError("a model with CPU kernels has no plain weights to merge into", hint="Merge before that.")
    if HEAD in adapter.updates and model.language_model.lm_head is None:
        _untie(model)
    for name, update in adapter.updates.items():
        parameter = model.get_parameter(name)
        merged, kind = update.merged(parameter.data), dtype or parameter.dtype
        if narrow and parameter.dtype == torch.bfloat16 and fp16_linear.can_round(merged):
            kind = torch.float16
        merged = merged.to(kind)
        if not torch.isfinite(merged).all():
            hint = "Its alpha is too large for these weights, or they are damaged."
            raise CheckpointError(f"{adapter.path} makes values of {name} that are no numbers", hint=hint)
        owner, _, leaf = name.rpartition(".")
        kept = nn.Parameter(merged, requires_grad=parameter.requires_grad)
        model.get_submodule(owner).register_parameter(leaf, kept)
    return model


def _untie(model: MiniCPMV) -> None:
    """Give the head a weight of its own, which is the embedding's until the merged one takes its place."""
    decoder = model.language_model
    table = decoder.embed_tokens.weight
    with torch.device("meta"):
        decoder.lm_head = nn.Linear(table.shape[1], table.shape[0], bias=False)
    decoder.lm_head.weight = nn.Parameter(table.detach(), requires_grad=table.requires_grad)
    decoder.config = replace(decoder.config, tie_word_embeddings=False)
    model.config = replace(model.config, text=decoder.config)
