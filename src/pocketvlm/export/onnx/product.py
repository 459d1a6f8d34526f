"""A graph of one int8 product, to measure what a machine can do."""

from __future__ import annotations

import onnx_ir as ir
import torch

from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.export.onnx.linear import linear


def int8_product(inputs: int, outputs: int) -> bytes:
    """Input `x` fp32 [T, inputs], output `y` fp32 [T, outputs]."""
    g = GraphBuilder("product")
    x = g.input("x", ir.DataType.FLOAT, ("tokens", inputs))
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    g.output("y", linear(g, "product", x, [weight], "int8"), ir.DataType.FLOAT, ("tokens", outputs))
    return bytes(ir.to_proto(g.model()).SerializeToString())
