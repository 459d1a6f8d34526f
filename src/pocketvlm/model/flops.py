"""Counting the work of the vision side: multiply-adds of every matrix product, two FLOPs each.

Norms, activations and softmax are left out (below one percent). Attention is counted as it is computed: within a view,
and within 2 x 2 windows in the early compression. (The LLaVA-UHD v4 paper, arXiv 2605.08985, prints multiply-adds and
charges window attention as dense, hence its larger figures.)
"""

from __future__ import annotations

from collections.abc import Iterable

from pocketvlm.config import ModelConfig
from pocketvlm.model.vision.view_order import WINDOW
from pocketvlm.views import View


def vision_flops(config: ModelConfig, views: Iterable[View], *, early_compression: bool | None = None) -> int:
    """FLOPs of tower and merger for these views.

    Args:
        early_compression: None counts each view at its own rate; False counts the tower without the compression
            (every layer sees every patch, as in 4x mode), True with it.
    """
    return sum(
        _view_flops(config, v, v.downsample_mode == "16x" if early_compression is None else early_compression)
        for v in views
    )


def _view_flops(config: ModelConfig, view: View, compressed: bool) -> int:
    vision, text = config.vision, config.text
    hidden, wide, patches = vision.hidden_size, vision.intermediate_size, view.patches

    def layer(tokens: int) -> int:
        return tokens * (4 * hidden**2 + 2 * hidden * wide + 2 * tokens * hidden)

    macs = patches * vision.patch_dim * hidden
    if compressed:
        before = config.insert_layer_id + 1
        after = vision.num_hidden_layers - before
        windows = patches // WINDOW
        attention = patches * (4 * hidden**2 + 2 * WINDOW * hidden)
        mlp = windows * WINDOW * wide * (WINDOW + 1) * hidden
        macs += before * layer(patches) + attention + mlp + after * layer(windows)
    else:
        windows = patches
        macs += vision.num_hidden_layers * layer(patches)
    folded = WINDOW * hidden
    macs += windows // WINDOW * (folded * folded + folded * text.hidden_size)
    return 2 * macs
