"""Layers of the tower and the decoder as they run in fp32 on a CPU: the numbers of the plain ones, in less time.

Each class stands beside a plain one, is made from it, and takes its place; the plain ones know nothing of it. Products
of one input are joined to one, and what follows a product is applied inside it (`kernels.linear`).

Shapes:  T packed tokens · D hidden · H query heads · Hk key heads · Hv value heads of E or V · C conv channels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pocketvlm.kernels.linear.choice import for_decoding, for_prompts, for_weight, pack
from pocketvlm.kernels.linear.fp16_linear import PART_ROWS, FP16Linear
from pocketvlm.model.text.decoder import Decoder, SwiGLU
from pocketvlm.model.text.gated_attention import GatedAttention
from pocketvlm.model.text.gated_delta_net import GatedDeltaNet
from pocketvlm.model.vision.early_compression import EarlyCompression
from pocketvlm.model.vision.tower import ViewAttention, VisionMLP


class CPUSwiGLU(nn.Module):
    """`SwiGLU` with the activation, the product and the sum inside the three products."""

    def __init__(self, plain: SwiGLU) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = for_decoding(plain.gate_proj), for_decoding(plain.up_proj)
        self.down_proj = for_decoding(plain.down_proj)

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        return self.down_proj.add(self.up_proj.mul(x_TD, self.gate_proj.silu(x_TD)), residual_TD)


class CPUGatedAttention(GatedAttention):
    """`GatedAttention` with queries, gates, keys and values in one product."""

    def __init__(self, plain: GatedAttention) -> None:
        with torch.device("meta"):
            super().__init__(plain.config, plain.layer)
        self.q_norm, self.k_norm = plain.q_norm, plain.k_norm
        self.widths = [linear.out_features for linear in (plain.q_proj, plain.k_proj, plain.v_proj)]
        del self.q_proj, self.k_proj, self.v_proj, self.o_proj
        self.qkv_proj = for_decoding(plain.q_proj, plain.k_proj, plain.v_proj)
        self.out = for_decoding(plain.o_proj)

    def project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries with gates [T, 2HE], keys and values [T, HkE]."""
        q, k, v = self.qkv_proj(x_TD).split(self.widths, dim=-1)
        return q, k, v

    def output(self, x_TH: Tensor, residual_TD: Tensor) -> Tensor:
        """Gated heads [T, HE] to residual + [T, D]."""
        return self.out.add(x_TH, residual_TD)


class CPUGatedDeltaNet(GatedDeltaNet):
    """`GatedDeltaNet` with its four projections of the input in one product."""

    def __init__(self, plain: GatedDeltaNet) -> None:
        with torch.device("meta"):
            super().__init__(plain.config, plain.layer)
        self.conv1d, self.norm, self.A_log, self.dt_bias = plain.conv1d, plain.norm, plain.A_log, plain.dt_bias
        inputs = plain.in_proj_qkv, plain.in_proj_z, plain.in_proj_b, plain.in_proj_a
        self.widths = [linear.out_features for linear in inputs]
        del self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a, self.out_proj
        self.in_proj = for_decoding(*inputs)
        self.out = for_decoding(plain.out_proj)

    def project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mixed queries, keys and values [T, C], z [T, HvV], b [T, Hv] and a [T, Hv]."""
        qkv, z, b, a = self.in_proj(x_TD).split(self.widths, dim=-1)
        return qkv, z, b, a

    def output(self, x_TH: Tensor, residual_TD: Tensor) -> Tensor:
        """Normalised heads [T, HvV] to residual + [T, D]."""
        return self.out.add(x_TH, residual_TD)


class CPUViewAttention(ViewAttention):
    """`ViewAttention` with the sum inside the last product."""

    def __init__(self, plain: ViewAttention) -> None:
        with torch.device("meta"):
            super().__init__(plain.config)
        self.q_proj, self.k_proj, self.v_proj = plain.q_proj, plain.k_proj, plain.v_proj
        del self.out_proj
        self.out = for_prompts(plain.out_proj)

    def output(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """Heads side by side [T, D] to residual + [T, D]."""
        return self.out.add(x_TD, residual_TD)


class CPUVisionMLP(nn.Module):
    """`VisionMLP` with the activation and the sum inside the two products."""

    def __init__(self, plain: VisionMLP) -> None:
        super().__init__()
        self.fc1, self.fc2 = for_prompts(plain.fc1), for_prompts(plain.fc2)

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        return self.fc2.add(self.fc1.gelu_tanh(x_TD), residual_TD)


class CPUEarlyCompression(EarlyCompression):
    """`EarlyCompression` with the activation and the mean inside the two products of its MLP."""

    def __init__(self, plain: EarlyCompression) -> None:
        with torch.device("meta"):
            super().__init__(plain.config, plain.self_attn)
        self.layer_norm1, self.pre_norm = plain.layer_norm1, plain.pre_norm
        del self.linear_1, self.linear_2
        self.fc1, self.fc2 = for_prompts(plain.linear_1), for_prompts(plain.linear_2)

    def mlp(self, folded: Tensor, mean: Tensor) -> Tensor:
        """Windows [T / 4, 4D] to mean + [T / 4, D]."""
        return self.fc2.add(self.fc1.gelu_tanh(folded), mean)


_BESIDE: dict[type[nn.Module], Callable[..., nn.Module]] = {
    SwiGLU: CPUSwiGLU,
    GatedAttention: CPUGatedAttention,
    GatedDeltaNet: CPUGatedDeltaNet,
    ViewAttention: CPUViewAttention,
    VisionMLP: CPUVisionMLP,
    EarlyCompression: CPUEarlyCompression,
}

# Products under another name than in the plain layer, or of several of its layers side by side: whose they are.
JOINED: dict[type[nn.Module], dict[str, tuple[str, ...]]] = {
    CPUGatedAttention: {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "out": ("o_proj",)},
    CPUGatedDeltaNet: {"in_proj": ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), "out": ("out_proj",)},
    CPUViewAttention: {"out": ("out_proj",)},
    CPUEarlyCompression: {"fc1": ("linear_1",), "fc2": ("linear_2",)},
}


def use_cpu_layers(
    tower: nn.Module, merger: nn.Module, decoder: Decoder, progress: Callable[[int, int], None] | None = None
) -> None:
    """Put the layers of this file in the place of their plain twins.

    One layer after the other, so that no second copy of all weights exists.

    Args:
        progress: called with (layers packed, layers in all).
    """
    if decoder.lm_head is None:
        decoder.lm_head = for_weight(decoder.embed_tokens.weight, keep_plain=True)
        if isinstance(decoder.lm_head, FP16Linear):
            # The fp32 table, the largest tensor of all, is then for looking rows up only.
            decoder.embed_tokens.weight.data = _narrowed(decoder.embed_tokens.weight.data)
    elif isinstance(decoder.lm_head, nn.Linear):
        decoder.lm_head = for_decoding(decoder.lm_head)
    for module in (tower, merger, decoder):
        _replace(module)
    pack(decoder, progress)


def _narrowed(table: torch.Tensor) -> torch.Tensor:
    """The table in bfloat16 where that holds it to the last bit, else as it is."""
    narrow = table.bfloat16()
    parts = zip(narrow.split(PART_ROWS), table.split(PART_ROWS), strict=True)
    return narrow if all(torch.equal(part.float(), rows.float()) for part, rows in parts) else table


def _replace(module: nn.Module) -> None:
    """All layers below `module`; linear ones that stand alone are those of the tower and the merger."""
    for name, child in module.named_children():
        replaced = _BESIDE[type(child)](child) if type(child) in _BESIDE else child
        if isinstance(replaced, nn.Linear):
            replaced = for_prompts(replaced)
        setattr(module, name, replaced)
        _replace(replaced)
