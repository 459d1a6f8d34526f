"""The vision tower: SigLIP2 layers over packed views, with early compression after layer `insert_layer_id`.

Source: SigLIP 2 (arXiv 2502.14786) as used by MiniCPM-V 4.6.
Shapes:  T packed tokens of all views · D hidden · H heads of E · patches [P, patch * patch * 3], channels last
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.config import ModelConfig, VisionConfig
from pocketvlm.kernels.attention import attend
from pocketvlm.model.embedding import Embedding
from pocketvlm.model.vision.early_compression import EarlyCompression
from pocketvlm.model.vision.view_packing import ViewGroup, ViewPacking


class ViewAttention(nn.Module):
    """Bidirectional attention inside each view; linear layers run over all tokens at once."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config, self.heads = config, config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_TD: Tensor, groups: Sequence[ViewGroup], residual_TD: Tensor) -> Tensor:
        """[T, D] to residual + [T, D]; `groups` says how many neighbouring views of how many tokens the rows are."""
        q, k, v = self.q_proj(x_TD), self.k_proj(x_TD), self.v_proj(x_TD)
        sizes = [g.count * g.tokens for g in groups]
        outs = []
        for group, *parts in zip(groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
            shape = (group.count, group.tokens, self.heads, -1)
            q_g, k_g, v_g = (part.view(shape).transpose(1, 2) for part in parts)
            outs.append(attend(q_g, k_g, v_g).transpose(1, 2).reshape(-1, x_TD.shape[1]))
        return self.output(outs[0] if len(outs) == 1 else torch.cat(outs), residual_TD)

    def output(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """Heads side by side [T, D] to residual + [T, D]."""
        return self.out_proj(x_TD) + residual_TD


class VisionMLP(nn.Module):
    """Two linear layers around a tanh GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_TD), approximate="tanh")) + residual_TD


class VisionLayer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ViewAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x_TD: Tensor, groups: Sequence[ViewGroup]) -> Tensor:
        x_TD = self.self_attn(self.layer_norm1(x_TD), groups, x_TD)
        return self.mlp(self.layer_norm2(x_TD), x_TD)


class VisionTower(nn.Module):
    """Patches to features of a quarter (16x views) or all (4x views) of the tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision = config.vision
        self.config = vision
        self.insert_layer_id = config.insert_layer_id
        self.patch_embedding = nn.Linear(vision.patch_dim, vision.hidden_size)
        self.position_embedding = Embedding(vision.positions_per_side**2, vision.hidden_size)
        self.layers = nn.ModuleList(VisionLayer(vision) for _ in range(vision.num_hidden_layers))
        self.vit_merger = EarlyCompression(vision, ViewAttention(vision))
        self.post_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)

    def forward(self, patches: Tensor, packing: ViewPacking) -> Tensor:
        """Normalised patches [P, patch_dim], in the order the views came, to packed features [T', D].

        T' counts a quarter of the patches of 16x views, then all patches of 4x views.
        """
        x_TD = self.patch_embedding(patches.index_select(0, packing.patch_index))
        x_TD = x_TD + self.position_embedding(packing.position_ids)
        groups = (*packing.groups_16x, *packing.groups_4x)
        for i, layer in enumerate(self.layers):
            x_TD = layer(x_TD, groups)
            if i == self.insert_layer_id and packing.groups_16x:
                x_TD, groups = self._compress(x_TD, packing)
        return self.post_layernorm(x_TD)

    def _compress(self, x_TD: Tensor, packing: ViewPacking) -> tuple[Tensor, tuple[ViewGroup, ...]]:
        """Early compression of the 16x views, which come first; 4x views pass by unchanged."""
        groups = (*(g.compressed() for g in packing.groups_16x), *packing.groups_4x)
        if not packing.groups_4x:
            return self.vit_merger(x_TD), groups
        compressed = self.vit_merger(x_TD[: packing.patches_16x])
        return torch.cat([compressed, x_TD[packing.patches_16x :]]), groups
