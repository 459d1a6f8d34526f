"""Linear layers of a graph: fp32, int8 with activations quantised on the fly, or 4-bit weights in blocks.

Shapes:  T tokens (several dimensions where there is no bias) · K inputs · N outputs · b inputs that a rotation mixes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import Tensor

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx_graphs.graph import GraphBuilder
from pocketvlm.export.onnx_graphs.quantization import (
    Once,
    as_fp32,
    as_int4,
    as_int8,
    block_of,
    rotation,
    size_of,
)

INT8_COMPUTE = 4  # `accuracy_level` of MatMulNBits: activations are quantised to int8, block by block
TINY = 1e-30  # under the largest value of a token of zeros


def linear(
    graph: GraphBuilder,
    name: str,
    x_TK: ir.Value,
    weights: Sequence[Tensor],
    scheme: Scheme,
    biases: Sequence[Tensor] = (),
) -> ir.Value:
    """x W^T + b, [T, K] to [T, N].

    Args:
        weights: [N, K] of the layers that share this product, one below the other; `biases` likewise.
        scheme: 4 bits need whole blocks of inputs; where there are none the product is int8.
    """
    outputs, inputs = size_of(weights)
    bias: tuple[ir.Value, ...] = ()
    if biases:
        columns = [b.unsqueeze(1) for b in biases]
        bias = (graph.weight(f"{name}.bias", ir.DataType.FLOAT, (outputs,), lambda: as_fp32(columns)[:, 0]),)
    if scheme == "fp32":
        weight = graph.weight(f"{name}.weight", ir.DataType.FLOAT, (outputs, inputs), lambda: as_fp32(weights))
        return (
            graph.op("Gemm", x_TK, weight, *bias, transB=1)
            if bias
            else graph.contrib("FusedMatMul", x_TK, weight, transB=1)
        )
    block = block_of(inputs)
    if scheme == "int8" or block is None:
        int8 = Once(lambda: as_int8(weights))
        weight = graph.weight(f"{name}.weight", ir.DataType.INT8, (inputs, outputs), lambda: int8(0))
        scale = graph.weight(f"{name}.scale", ir.DataType.FLOAT, (outputs,), lambda: int8(1))
        return graph.contrib("DynamicQuantizeMatMul", x_TK, weight, scale, None, *bias)
    blocks, int4 = inputs // block, Once(lambda: as_int4(weights))
    weight = graph.weight(f"{name}.weight", ir.DataType.UINT8, (outputs, blocks, block // 2), lambda: int4(0))
    scale = graph.weight(f"{name}.scale", ir.DataType.FLOAT, (outputs, blocks), lambda: int4(1))
    skipped = (None, None, *bias) if bias else ()
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": INT8_COMPUTE}
    return graph.contrib("MatMulNBits", x_TK, weight, scale, *skipped, **attributes)


def token_linear(
    graph: GraphBuilder, name: str, x_TK: ir.Value, weights: Sequence[Tensor], scheme: Scheme, *, rotated: bool = False
) -> ir.Value:
    """`linear` without a bias, where nothing of a token depends on the tokens beside it: in int8 each has a scale of
    its own, not the whole product one. So the same prompt has the same result in one chunk or two, and a sequence the
    same answer alone or in a batch.

    Args:
        x_TK: [B, S, K] if it is rotated.
        rotated: in int8, mix inputs by an orthogonal matrix before they are rounded, and the weights by the same one
            (QuaRot, arXiv 2404.00456). Gated inputs have few large values among many small ones, which are lost beside
            them; mixed, all are of a size.
    """
    outputs, inputs = size_of(weights)
    if scheme == "fp32" or (scheme == "int4" and block_of(inputs) is not None):
        return linear(graph, name, x_TK, weights, scheme)
    mix = rotation(inputs) if rotated else None
    if mix is not None:
        blocks = graph.op("Reshape", x_TK, graph.constant([0, 0, inputs // len(mix), len(mix)]))
        mixed = graph.op("MatMul", blocks, graph.constant(mix, np.float32))
        x_TK = graph.op("Reshape", mixed, graph.constant([0, 0, inputs]))
    int8 = Once(lambda: as_int8(weights, mix))
    weight = graph.weight(f"{name}.weight", ir.DataType.INT8, (inputs, outputs), lambda: int8(0))
    scale = graph.weight(f"{name}.scale", ir.DataType.FLOAT, (outputs,), lambda: int8(1))
    largest = graph.op("ReduceMax", graph.op("Abs", x_TK), graph.constant([-1]), keepdims=1)
    largest = graph.op("Max", largest, graph.constant(TINY, np.float32))
    step, zero = graph.constant(1 / 127, np.float32), graph.constant(128, np.uint8)
    steps = graph.op("QuantizeLinear", graph.op("Div", x_TK, largest), step, zero)
    product = graph.contrib("MatMulIntegerToFloat", steps, weight, step, scale, zero)
    return graph.op("Mul", product, largest)
