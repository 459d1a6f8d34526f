"""Token embeddings as a graph of their own: a step of the decoder needs one row of a table of a gigabyte."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pocketvlm.export.onnx.graph import Array, GraphBuilder
from pocketvlm.export.onnx.pieces import Parameter, Scratch, each_part
from pocketvlm.model.weights import Weights


def embedding_graph(weights: Weights, *, half: bool) -> ir.Model:
    """Input `input_ids` int64 [B, S]; output `embeddings` fp32 [B, S, D].

    Args:
        half: a table in fp16, at most 3e-8 off where values are below 2^-14 (elsewhere exact for bfloat16 checkpoints).
    """
    g, table = GraphBuilder("embedding"), Parameter(weights, "language_model.embed_tokens.weight")
    kind = np.float16 if half else np.float32

    def rows() -> Array:
        out = np.empty(table.shape, kind)

        def work(place: slice, some: Array, _: Scratch) -> None:
            out[place] = some

        each_part([table], work)
        return out

    ids = g.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
    dtype = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    weight = g.weight("embed_tokens.weight", dtype, table.shape, rows)
    found = g.op("Cast", g.op("Gather", weight, ids), to=ir.DataType.FLOAT)
    g.output("embeddings", found, ir.DataType.FLOAT, ("batch", "tokens", table.shape[1]))
    return g.model()
