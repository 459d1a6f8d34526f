"""Tower and merger of operators that are compiled for this machine: bias and GELU go into the products, whose
activations have a scale for each token, and attention is ours.

Shapes:  T tokens · K inputs · N outputs · S sequences that do not see each other · D hidden size of the tower
"""

from __future__ import annotations

import onnx_ir as ir
from torch import nn

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.linear import can_compile, compiled_linear
from pocketvlm.export.onnx.vision import VisionGraph
from pocketvlm.model.vision.tower import ViewAttention
from pocketvlm.model.vlm import MiniCPMV

MOST_DIM = 80  # of a head, as view_attention.h has it


class CompiledVisionGraph(VisionGraph):
    """As `VisionGraph`, with the same inputs and outputs; what is of a size that operators do not take stays so."""

    def __init__(self, model: MiniCPMV, scheme: Scheme) -> None:
        super().__init__(model, scheme, compiled=True)

    def _linear(self, name: str, x: ir.Value, *layers: nn.Linear) -> ir.Value:
        if not self._can_compile(layers[0]):
            return super()._linear(name, x, *layers)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return compiled_linear(self.graph, name, x, weights, self.scheme, biases=biases)

    def _linear_gelu(self, name: str, x: ir.Value, layer: nn.Linear) -> ir.Value:
        if not self._can_compile(layer):
            return super()._linear_gelu(name, x, layer)
        return compiled_linear(self.graph, name, x, [layer.weight], self.scheme, biases=[layer.bias], gelu=True)

    def _can_compile(self, layer: nn.Linear) -> bool:
        return can_compile(self.graph, layer.in_features, self.scheme, rotated=False)

    def _attend(self, joined: ir.Value, attention: ViewAttention) -> ir.Value:
        dim = self.width // attention.heads
        if self.scheme == "fp32" or dim % 2 or dim > MOST_DIM:
            return super()._attend(joined, attention)
        out: ir.Value = self.graph.own("ViewAttention", joined, heads=attention.heads)
        return out
