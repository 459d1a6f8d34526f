"""Tables of learned vectors, whose rows are looked up by number."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """`nn.Embedding` without first values on the meta device, where a checkpoint's weights take its place.

    PyTorch draws normal values there through the decompositions of its compiler, and importing that takes longer than
    loading and asking a small model.
    """

    def reset_parameters(self) -> None:
        """Draw first values, unless there is no memory to hold them."""
        if not self.weight.is_meta:
            super().reset_parameters()
