"""Tower and merger as one graph: views of one shape at one rate in, visual tokens out.

`compress` decides at run time between 16x and 4x, so both rates share one set of weights. Patches come window by window
(`model.vision.view_order.window_order`), which saves every shuffle inside.

Shapes:  V views · N patches of a view · M = N / 16 or N / 4 visual tokens · D hidden size of the tower
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.graph import Array, GraphBuilder
from pocketvlm.export.onnx.linear import linear
from pocketvlm.export.onnx.pieces import Parameter
from pocketvlm.model.vision.view_order import WINDOW
from pocketvlm.model.weights import Weights

TOWER = "vision_tower"
MERGER_EPS = 1e-6  # of the merger's norm, which no configuration has: `model.vision.merger`


class VisionGraph:
    """Writes the graph of tower and merger. Layers have the names of their parameters, weights in the graph those
    without `vision_tower`.

    Args:
        scheme: of all products but that of the patches, which are few and carry the raw pixels.
        compiled: whether there may be operators of our own.
    """

    def __init__(self, weights: Weights, scheme: Scheme, *, compiled: bool = False) -> None:
        self.weights, self.scheme, self.config = weights, scheme, weights.config.vision
        self.graph = GraphBuilder("vision", compiled=compiled)
        self.width = self.config.hidden_size

    def build(self) -> ir.Model:
        """Inputs `patches` uint8 [V, N, patch_dim], `position_ids` int64 [N], `compress` bool []; output `features`
        fp32 [V, M, decoder hidden]."""
        g, config = self.graph, self.weights.config
        patches = g.input("patches", ir.DataType.UINT8, ("views", "patches", config.vision.patch_dim))
        position_ids = g.input("position_ids", ir.DataType.INT64, ("patches",))
        compress = g.input("compress", ir.DataType.BOOL, ())
        views = g.op("Shape", patches, start=0, end=1)
        x = self._embed(patches, position_ids)
        for i in range(config.vision.num_hidden_layers):
            x = self._layer(f"layers.{i}", x, views)
            if i == config.insert_layer_id:
                x = self._compress_if(compress, x)
        x = self._norm("post_layernorm", x)
        x = self._merge(x)
        hidden = config.text.hidden_size
        shape = g.op("Concat", views, g.constant([-1, hidden]), axis=0)
        features = g.op("Reshape", x, shape)
        g.output("features", features, ir.DataType.FLOAT, ("views", "tokens", hidden))
        return g.model()

    def _embed(self, patches: ir.Value, position_ids: ir.Value) -> ir.Value:
        """uint8 [V, N, P] to [V * N, D]; the normalisation of the pixels is folded into the weights."""
        g, dim = self.graph, self.config.patch_dim

        def folded() -> tuple[Array, Array]:
            colours = self.weights.pixel_mean, self.weights.pixel_std
            mean, std = (np.tile(np.asarray(v, np.float32).astype(np.float64), dim // 3) for v in colours)
            weight = self.weights.array(f"{TOWER}.patch_embedding.weight").astype(np.float64) / (255 * std)
            bias = self.weights.array(f"{TOWER}.patch_embedding.bias").astype(np.float64) - weight @ (255 * mean)
            return weight.astype(np.float32), bias.astype(np.float32)

        weight = g.weight("patch_embedding.weight", ir.DataType.FLOAT, (self.width, dim), lambda: folded()[0])
        bias = g.weight("patch_embedding.bias", ir.DataType.FLOAT, (self.width,), lambda: folded()[1])
        rows = g.op("Reshape", g.op("Cast", patches, to=ir.DataType.FLOAT), g.constant([-1, dim]))
        x = g.op("Gemm", rows, weight, bias, transB=1)
        table = self._plain("position_embedding.weight", f"{TOWER}.position_embedding.weight")
        positions = g.op("Gather", table, position_ids)
        shaped = g.op("Reshape", x, g.op("Concat", g.constant([-1]), g.op("Shape", positions), axis=0))
        return self._rows(g.op("Add", shaped, positions))

    def _plain(self, name: str, parameter: str) -> ir.Value:
        """A parameter as it is, in fp32."""
        shape = self.weights.shape(parameter)
        return self.graph.weight(name, ir.DataType.FLOAT, shape, lambda: self.weights.array(parameter))

    def _rows(self, x: ir.Value, width: int | None = None) -> ir.Value:
        return self.graph.op("Reshape", x, self.graph.constant([-1, width or self.width]))

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        """A norm of the tower."""
        return self._layer_norm(name, f"{TOWER}.{name}", x, self.config.layer_norm_eps)

    def _layer_norm(self, name: str, norm: str, x: ir.Value, epsilon: float) -> ir.Value:
        scale, bias = (self._plain(f"{name}.{part}", f"{norm}.{part}") for part in ("weight", "bias"))
        return self.graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def _linear(self, name: str, x: ir.Value, *layers: str) -> ir.Value:
        return linear(self.graph, name, x, self._parts(layers, "weight"), self.scheme, self._parts(layers, "bias"))

    def _parts(self, layers: Sequence[str], part: str) -> list[Parameter]:
        """Weights or biases of layers that share a product."""
        return [Parameter(self.weights, f"{layer}.{part}") for layer in layers]

    def _linear_gelu(self, name: str, x: ir.Value, layer: str) -> ir.Value:
        """GELU in its tanh form of a linear layer."""
        return self.graph.contrib("FastGelu", self._linear(name, x, layer))

    def _attention(self, name: str, x: ir.Value, first_two: ir.Value) -> ir.Value:
        """[T, D] to [T, D]; `first_two` is the shape [V, -1] or the like of sequences that do not see each other."""
        g = self.graph
        joined = self._linear(f"{name}.qkv_proj", x, *(f"{TOWER}.{name}.{part}_proj" for part in "qkv"))
        shape = g.op("Concat", first_two, g.constant([3 * self.width]), axis=0)
        out = self._attend(g.op("Reshape", joined, shape))
        return self._linear(f"{name}.out_proj", self._rows(out), f"{TOWER}.{name}.out_proj")

    def _attend(self, joined: ir.Value) -> ir.Value:
        """Queries, keys and values side by side, [sequences, tokens, 3 D], to [sequences, tokens, D]."""
        q, k, v = self.graph.ops("Split", 3, joined, axis=-1, num_outputs=3)
        return self.graph.contrib("MultiHeadAttention", q, k, v, num_heads=self.config.num_attention_heads)

    def _layer(self, name: str, x: ir.Value, views: ir.Value) -> ir.Value:
        g = self.graph
        shape = g.op("Concat", views, g.constant([-1]), axis=0)
        normed = self._norm(f"{name}.layer_norm1", x)
        x = g.op("Add", x, self._attention(f"{name}.self_attn", normed, shape))
        normed = self._norm(f"{name}.layer_norm2", x)
        hidden = self._linear_gelu(f"{name}.fc1", normed, f"{TOWER}.{name}.mlp.fc1")
        return g.op("Add", x, self._linear(f"{name}.fc2", hidden, f"{TOWER}.{name}.mlp.fc2"))

    def _compress_if(self, compress: ir.Value, x: ir.Value) -> ir.Value:
        """Early compression where `compress` says so, else x unchanged."""
        outer, name = self.graph, "vit_merger"
        inner = self.graph = outer.branch("compress")
        normed = self._norm(f"{name}.layer_norm1", x)
        windows = inner.constant([-1, WINDOW])
        seen = inner.op("Add", x, self._attention(f"{name}.self_attn", normed, windows))
        mean = inner.op(
            "ReduceMean",
            inner.op("Reshape", seen, inner.constant([-1, WINDOW, self.width])),
            inner.constant([1]),
            keepdims=0,
        )
        folded = self._norm(f"{name}.pre_norm", self._rows(seen, WINDOW * self.width))
        hidden = self._linear_gelu(f"{name}.linear_1", folded, f"{TOWER}.{name}.linear_1")
        merged = inner.op("Add", self._linear(f"{name}.linear_2", hidden, f"{TOWER}.{name}.linear_2"), mean)
        other = outer.branch("keep")
        kept = other.op("Identity", x)
        self.graph = outer
        return outer.op("If", compress, then_branch=inner.subgraph(merged), else_branch=other.subgraph(kept))

    def _merge(self, x: ir.Value) -> ir.Value:
        folded, name = self._rows(x, WINDOW * self.width), "merger.pre_norm"
        normed = self._layer_norm(name, name, folded, MERGER_EPS)
        hidden = self.graph.contrib("Gelu", self._linear("merger.linear_1", normed, "merger.linear_1"))
        return self._linear("merger.linear_2", hidden, "merger.linear_2")
