"""Warm start of early compression from the layer in front of it, so that inserting it hardly disturbs a trained tower.

Source: LLaVA-UHD v4 (arXiv 2605.08985). `transformers` initialises this part at random instead, which is not the
paper's way.
"""

from __future__ import annotations

from typing import cast

import torch

from pocketvlm.model.vision.tower import VisionLayer, VisionTower
from pocketvlm.model.vision.view_order import WINDOW


@torch.no_grad()
def warm_start_compression(tower: VisionTower) -> None:
    """Overwrite the tower's compression in place with weights of encoder layer `insert_layer_id`.

    Window attention and its norm are copies. The wide MLP applies the layer's own MLP to each of the four tokens and
    averages the four results: fc1 repeated on the diagonal of linear_1, a quarter of fc2 four times side by side in
    linear_2 (biases unscaled), the norm in front tiled over the four positions.
    """
    layer, merger = cast(VisionLayer, tower.layers[tower.insert_layer_id]), tower.vit_merger
    merger.layer_norm1.load_state_dict(layer.layer_norm1.state_dict())
    merger.self_attn.load_state_dict(layer.self_attn.state_dict())
    merger.pre_norm.weight.copy_(layer.layer_norm2.weight.repeat(WINDOW))
    merger.pre_norm.bias.copy_(layer.layer_norm2.bias.repeat(WINDOW))
    fc1, fc2 = layer.mlp.fc1, layer.mlp.fc2
    merger.linear_1.weight.copy_(torch.block_diag(*[fc1.weight] * WINDOW))
    merger.linear_1.bias.copy_(fc1.bias.repeat(WINDOW))
    merger.linear_2.weight.copy_(torch.cat([fc2.weight] * WINDOW, dim=1) / WINDOW)
    merger.linear_2.bias.copy_(fc2.bias)
