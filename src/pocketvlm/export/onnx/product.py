"""Graphs of one product, or of one attention, to measure what a machine can do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.export.onnx.linear import compiled_linear, linear, token_linear
from pocketvlm.export.onnx.pieces import Given


def int8_product(inputs: int, outputs: int) -> bytes:
    """Input `x` fp32 [T, inputs], output `y` fp32 [T, outputs]."""
    g = GraphBuilder("product")
    x = g.input("x", ir.DataType.FLOAT, ("tokens", inputs))
    g.output("y", linear(g, "product", x, [_weight(inputs, outputs)], "int8"), ir.DataType.FLOAT, ("tokens", outputs))
    return bytes(ir.to_proto(g.model()).SerializeToString())


def product_of_tower(inputs: int, outputs: int, scheme: Scheme, *, compiled: bool, gelu: bool = False) -> bytes:
    """As the tower has it, with a bias, compiled with GELU where `gelu` says so: `x` fp32 [1, T, inputs] to `y` fp32
    [1, T, outputs]."""
    g = GraphBuilder("product", compiled=compiled)
    x = g.input("x", ir.DataType.FLOAT, ("views", "patches", inputs))
    weights, biases = [_weight(inputs, outputs)], [Given(np.zeros(outputs, np.float32))]
    if compiled:
        y = compiled_linear(g, "product", x, weights, scheme, biases=biases, gelu=gelu)
    else:
        y = linear(g, "product", x, weights, scheme, biases)
    g.output("y", y, ir.DataType.FLOAT, ("views", "patches", outputs))
    return bytes(ir.to_proto(g.model()).SerializeToString())


def attention_of_tower(width: int, heads: int) -> bytes:
    """The compiled one inside views: `x` fp32 [V, N, 3 width], queries, keys and values, to `y` fp32 [V, N, width]."""
    g = GraphBuilder("attention", compiled=True)
    x = g.input("x", ir.DataType.FLOAT, ("views", "tokens", 3 * width))
    g.output("y", g.own("ViewAttention", x, heads=heads), ir.DataType.FLOAT, ("views", "tokens", width))
    return bytes(ir.to_proto(g.model()).SerializeToString())


def product_of_decoder(inputs: int, outputs: int, scheme: Scheme, *, compiled: bool) -> bytes:
    """As the decoder has it: `x` fp32 [1, T, inputs] to `y` fp32 [1, T, outputs]."""
    g = GraphBuilder("product", compiled=compiled)
    x = g.input("x", ir.DataType.FLOAT, ("batch", "new", inputs))
    y = token_linear(g, "product", x, [_weight(inputs, outputs)], scheme)
    g.output("y", y, ir.DataType.FLOAT, ("batch", "new", outputs))
    return bytes(ir.to_proto(g.model()).SerializeToString())


def _weight(inputs: int, outputs: int) -> Given:
    random = np.random.default_rng(0).standard_normal((outputs, inputs), np.float32)
    return Given(random * np.float32(inputs**-0.5))
