"""Linear layers of a graph: fp32, int8 with activations quantised on the fly, or 4-bit weights in blocks.

Shapes:  T tokens (several dimensions where there is no bias) · K inputs · N outputs
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx_graphs.graph import GraphBuilder
from pocketvlm.export.onnx_graphs.quantization import Once, as_fp32, as_int4, as_int8, block_of, size_of

INT8_COMPUTE = 4  # `accuracy_level` of MatMulNBits: activations are quantised to int8, block by block


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
