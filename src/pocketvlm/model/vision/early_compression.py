"""Early compression inside the tower: attention within 2 x 2 windows, then four tokens become one.

Source: LLaVA-UHD v4 (arXiv 2605.08985), `vit_merger` in the published checkpoint.
Shapes:  T packed tokens, window by window · D hidden
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.config import VisionConfig
from pocketvlm.model.vision.view_order import WINDOW
from pocketvlm.model.vision.view_packing import ViewGroup


class EarlyCompression(nn.Module):
    """x + window attention, fold 2 x 2, LayerNorm, wide MLP (tanh GELU), plus the mean of the four tokens.

    Args:
        config: the tower's shapes.
        attention: an attention over groups of tokens, as the tower's layers use it.
    """

    def __init__(self, config: VisionConfig, attention: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = attention
        self.pre_norm = nn.LayerNorm(WINDOW * config.hidden_size, eps=config.layer_norm_eps)
        self.linear_1 = nn.Linear(WINDOW * config.hidden_size, WINDOW * config.intermediate_size)
        self.linear_2 = nn.Linear(WINDOW * config.intermediate_size, config.hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] to [T / 4, D]. Windows are neighbours in packed order, so all of them are one batched product."""
        windows = len(x_TD) // WINDOW
        x_TD = self.self_attn(self.layer_norm1(x_TD), [ViewGroup(windows, WINDOW)], x_TD)
        mean = x_TD.view(windows, WINDOW, -1).mean(1)
        folded = self.pre_norm(x_TD.view(windows, -1))
        return self.mlp(folded, mean)

    def mlp(self, folded: Tensor, mean: Tensor) -> Tensor:
        """Windows [T / 4, 4D] to mean + [T / 4, D]."""
        return self.linear_2(F.gelu(self.linear_1(folded), approximate="tanh")) + mean
