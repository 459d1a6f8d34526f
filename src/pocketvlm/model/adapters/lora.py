"""The update of one linear layer, and all of them together: LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732), DoRA
(arXiv 2402.09353).

Shapes:  N outputs · K inputs · R rank
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VISION = ("vision_tower.", "merger.")
HEAD = "language_model.lm_head.weight"


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """W' = W + scale B A; with magnitudes (DoRA) each row of W' is then brought to its magnitude.

    Attributes:
        a_RK, b_NR: fp32.
        scale: alpha / R, or alpha / sqrt(R) in rsLoRA.
        magnitude_N: fp32, of DoRA; None in LoRA.
    """

    a_RK: Tensor
    b_NR: Tensor
    scale: float
    magnitude_N: Tensor | None = None

    def merged(self, weight_NK: Tensor) -> Tensor:
        """The weight with the update in it, in fp32."""
        weight = weight_NK.float() + self.scale * (self.b_NR.to(weight_NK.device) @ self.a_RK.to(weight_NK.device))
        if self.magnitude_N is None:
            return weight
        magnitude = self.magnitude_N.to(weight.device)
        return weight * (magnitude / weight.norm(dim=1)).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a folder holds, checked against the model's shapes.

    Attributes:
        path: of the folder, for people.
        digest: of everything in it that can change an answer.
        updates: of weights, by our parameter name.
        base: what its configuration says it was made for; never opened.
        rank: the largest.
    """

    path: Path
    digest: str
    updates: Mapping[str, LowRankUpdate]
    base: str = ""

    @property
    def rank(self) -> int:
        return max(len(update.a_RK) for update in self.updates.values())

    @property
    def touches_vision(self) -> bool:
        """Whether features of pictures change."""
        return any(name.startswith(VISION) for name in self.updates)
