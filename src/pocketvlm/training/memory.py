"""Less memory for the same run: layers that are computed twice, and a base in 4 bits; and how much it took."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pocketvlm.errors import MissingExtraError
from pocketvlm.lenient_imports import offline
from pocketvlm.machine import peak_resident_bytes
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.precision import autocast_dtype


def recompute_layers(model: MiniCPMV) -> None:
    """Keep the inputs of layers instead of what they computed, and compute it once more in the backward pass (Chen et
    al., arXiv 1604.06174), in place: about a third more time."""
    for layer in (*model.vision_tower.layers, *model.language_model.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def import_bitsandbytes() -> Any:
    """The package, or an error that says how to get it."""
    try:
        with offline():
            import bitsandbytes
    except ImportError:
        raise MissingExtraError("bitsandbytes", "qlora") from None
    return bitsandbytes


def quantize_base(model: MiniCPMV, layers: Iterable[str]) -> None:
    """Keep the weights of some linear layers in 4 bits (NF4 with quantised scales, Dettmers et al., arXiv 2305.14314),
    in place. They do not learn any more; adapters beside them can. What is in 4 bits already stays as it is."""
    nf4 = import_bitsandbytes().nn
    compute = autocast_dtype(model.device, model.config.text.hidden_size)
    for name in layers:
        parent_name, _, child = name.rpartition(".")
        parent, plain = model.get_submodule(parent_name), model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        if isinstance(plain, nf4.Linear4bit):
            continue
        made = nf4.Linear4bit(
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            compute_dtype=compute,
            compress_statistics=True,
            quant_type="nf4",
        )
        made.weight = nf4.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        made.bias = plain.bias
        # On CPUs with bfloat16 it would pack its weights anew in an evaluation: that fails for layers whose outputs are
        # no multiple of 32 (`in_proj_a` has one for each head), and the packed ones would be learnt with.
        made.support_avx512bf16_for_cpu = False
        setattr(parent, child, made.to(plain.weight.device))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # as peft looks for it


def peak_memory(device: torch.device) -> int:
    """Most bytes at a time so far: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
