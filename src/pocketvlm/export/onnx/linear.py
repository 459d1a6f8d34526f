"""Linear layers of a graph: fp32, int8 with activations quantised on the fly, or 4-bit weights in blocks.

Shapes:  T tokens (several dimensions where there is no bias) · K inputs · N outputs · b inputs that a rotation mixes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx import panels
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.export.onnx.pieces import Piece, as_fp32, size_of
from pocketvlm.export.onnx.quantization import Array, Once, as_int4, as_int8, block_of, rotation

INT8_COMPUTE = 4  # `accuracy_level` of MatMulNBits: activations are quantised to int8, block by block
ACTIVATIONS = {"silu": 1, "sigmoid": 2}  # of a gate, as gate.h numbers them
TINY = 1e-30  # under the largest value of a token of zeros


def linear(
    graph: GraphBuilder,
    name: str,
    x_TK: ir.Value,
    weights: Sequence[Piece],
    scheme: Scheme,
    biases: Sequence[Piece] = (),
) -> ir.Value:
    """x W^T + b, [T, K] to [T, N].

    Args:
        weights: [N, K] of the layers that share this product, one below the other; `biases` likewise.
        scheme: 4 bits need whole blocks of inputs; where there are none the product is int8.
    """
    outputs, inputs = size_of(weights)
    bias = (_bias(graph, name, outputs, biases),) if biases else ()
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
    graph: GraphBuilder, name: str, x_TK: ir.Value, weights: Sequence[Piece], scheme: Scheme, *, rotated: bool = False
) -> ir.Value:
    """`linear` without a bias, where nothing of a token depends on the tokens beside it: in int8 each has a scale of
    its own, not the whole product one. So a product gives the same prompt the same result in one chunk or two, and a
    sequence the same alone or in a batch.

    Args:
        x_TK: [B, S, K] if it is rotated.
        rotated: in int8, mix inputs by an orthogonal matrix before they are rounded, and the weights by the same one
            (QuaRot, arXiv 2404.00456). Gated inputs have few large values among many small ones, which are lost beside
            them; mixed, all are of a size.
    """
    outputs, inputs = size_of(weights)
    if can_compile(graph, inputs, scheme):
        return compiled_linear(graph, name, x_TK, weights, scheme, rotated=rotated)
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


@dataclass(frozen=True)
class Gate:
    """What the compiled product does to its inputs first: norm by heads, then times the activation of a gate.

    Attributes:
        values: [B, S, ≥ K] of which the K gates begin at `offset`; `x_offset` likewise in the inputs.
        norm: fp32 [E] of an RMS norm over heads of E inputs.
    """

    values: ir.Value
    activation: Literal["silu", "sigmoid"]
    offset: int = 0
    x_offset: int = 0
    norm: ir.Value | None = None
    head: int = 0
    epsilon: float = 0.0


def can_compile(graph: GraphBuilder, inputs: int, scheme: Scheme, *, rotated: bool = True) -> bool:
    """Whether there is a compiled product for rows of so many inputs, which may have to be mixed, in a graph."""
    return graph.compiled and scheme != "fp32" and panels.is_possible(inputs, _block(scheme, inputs), rotated=rotated)


def compiled_linear(
    graph: GraphBuilder,
    name: str,
    x_TK: ir.Value,
    weights: Sequence[Piece],
    scheme: Scheme,
    *,
    rotated: bool = False,
    gate: Gate | None = None,
    biases: Sequence[Piece] = (),
    gelu: bool = False,
) -> ir.Value:
    """`token_linear` in one node of our own, which `can_compile` allows: it gates, rotates, rounds, multiplies, adds
    the bias, and takes the tanh form of GELU of all that."""
    outputs, inputs = size_of(weights)
    block = _block(scheme, inputs)
    is_int4 = scheme == "int4" and block_of(inputs) is not None
    rotates = rotated and not is_int4
    bits = 4 if is_int4 else 8

    def make() -> tuple[Array, Array]:
        if is_int4:
            return panels.from_int4(*as_int4(weights))
        return panels.from_int8(*as_int8(weights, rotation(inputs) if rotates else None))

    packed, count = Once(make), panels.panels_of(outputs)
    shape, scales_shape = (count, inputs * bits // 32, panels.PANEL, 4), (count, inputs // block, panels.PANEL)
    values = graph.weight(f"{name}.weight", ir.DataType.UINT8, shape, lambda: packed(0))
    scale = graph.weight(f"{name}.scale", ir.DataType.FLOAT, scales_shape, lambda: packed(1))
    attributes = {"bits": bits, "K": inputs, "N": outputs, "block": block, "rotate": int(rotates)}
    attributes |= {
        "activation": ACTIVATIONS[gate.activation] if gate else 0,
        "x_offset": gate.x_offset if gate else 0,
        "gate_offset": gate.offset if gate else 0,
        "head": gate.head if gate else 0,
        "gelu": int(gelu),
    }
    extra: list[ir.Value | None] = [gate.values if gate else None, gate.norm if gate else None]
    if biases:
        extra.append(_bias(graph, name, outputs, biases))
    while extra and extra[-1] is None:
        extra.pop()
    epsilon = gate.epsilon if gate else 0.0
    return graph.own("QuantizedLinear", x_TK, values, scale, *extra, **attributes, epsilon=epsilon)


def _bias(graph: GraphBuilder, name: str, outputs: int, biases: Sequence[Piece]) -> ir.Value:
    return graph.weight(f"{name}.bias", ir.DataType.FLOAT, (outputs,), lambda: as_fp32(biases))


def _block(scheme: Scheme, inputs: int) -> int:
    """Inputs that share a scale: all of a row in int8."""
    return (block_of(inputs) or inputs) if scheme == "int4" else inputs
