"""Tower and merger of operators that are compiled for this machine: bias and GELU go into the products, whose
activations have a scale for each token, and attention is ours.

Shapes:  T tokens · K inputs · N outputs · S sequences that do not see each other · D hidden size of the tower
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.linear import can_compile, compiled_linear
from pocketvlm.export.onnx.vision import VisionGraph
from pocketvlm.model.weights import Weights

MOST_DIM = 80  # of a head, as view_attention.h has it


class CompiledVisionGraph(VisionGraph):
    """As `VisionGraph`, with the same inputs and outputs; what is of a size that operators do not take stays so."""

    def __init__(self, weights: Weights, scheme: Scheme) -> None:
        super().__init__(weights, scheme, compiled=True)

    def _linear(self, name: str, x: ir.Value, *layers: str) -> ir.Value:
        if not self._can_compile(layers[0]):
            return super()._linear(name, x, *layers)
        return self._compiled(name, x, layers)

    def _linear_gelu(self, name: str, x: ir.Value, layer: str) -> ir.Value:
        if not self._can_compile(layer):
            return super()._linear_gelu(name, x, layer)
        return self._compiled(name, x, [layer], gelu=True)

    def _compiled(self, name: str, x: ir.Value, layers: Sequence[str], *, gelu: bool = False) -> ir.Value:
        weights, biases = self._parts(layers, "weight"), self._parts(layers, "bias")
        return compiled_linear(self.graph, name, x, weights, self.scheme, biases=biases, gelu=gelu)

    def _can_compile(self, layer: str) -> bool:
        return can_compile(self.graph, self.weights.shape(f"{layer}.weight")[1], self.scheme, rotated=False)

    def _attend(self, joined: ir.Value) -> ir.Value:
        dim = self.config.head_dim
        if self.scheme == "fp32" or dim % 2 or dim > MOST_DIM:
            return super()._attend(joined)
        out: ir.Value = self.graph.own("ViewAttention", joined, heads=self.config.num_attention_heads)
        return out
