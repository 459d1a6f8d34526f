"""The projector: four neighbouring tower features become one token of the language model.

Shapes:  T packed tower features, window by window · D tower hidden · N visual tokens = T / 4 · M decoder hidden
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.config import ModelConfig
from pocketvlm.model.vision.view_order import WINDOW

LAYER_NORM_EPS = 1e-6


class Merger(nn.Module):
    """Fold 2 x 2, LayerNorm, Linear, exact (erf) GELU, Linear. The tower's GELU is the tanh one: two different ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        folded = WINDOW * config.vision.hidden_size
        self.pre_norm = nn.LayerNorm(folded, eps=LAYER_NORM_EPS)
        self.linear_1 = nn.Linear(folded, folded)
        self.linear_2 = nn.Linear(folded, config.text.hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] to [N, M]."""
        folded = self.pre_norm(x_TD.view(len(x_TD) // WINDOW, -1))
        return self.linear_2(F.gelu(self.linear_1(folded)))
