"""Tower and merger as one graph: views of one shape at one rate in, visual tokens out.

`compress` decides at run time between 16x and 4x, so both rates share one set of weights. Patches come window by window
(`model.vision.view_packing.window_order`), which saves every shuffle inside.

Shapes:  V views · N patches of a view · M = N / 16 or N / 4 visual tokens · D hidden size of the tower
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import nn

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.graph import Array, GraphBuilder
from pocketvlm.export.onnx.linear import linear
from pocketvlm.model.vision.early_compression import WINDOW, EarlyCompression
from pocketvlm.model.vision.tower import ViewAttention, VisionLayer
from pocketvlm.model.vlm import MiniCPMV


class VisionGraph:
    """Writes the graph of `model`'s tower and merger.

    Args:
        scheme: of all products but that of the patches, which are few and carry the raw pixels.
        compiled: whether there may be operators of our own.
    """

    def __init__(self, model: MiniCPMV, scheme: Scheme, *, compiled: bool = False) -> None:
        self.model, self.scheme = model, scheme
        self.graph = GraphBuilder("vision", compiled=compiled)
        self.width = model.config.vision.hidden_size

    def build(self) -> ir.Model:
        """Inputs `patches` uint8 [V, N, patch_dim], `position_ids` int64 [N], `compress` bool []; output `features`
        fp32 [V, M, decoder hidden]."""
        g, config = self.graph, self.model.config
        patches = g.input("patches", ir.DataType.UINT8, ("views", "patches", config.vision.patch_dim))
        position_ids = g.input("position_ids", ir.DataType.INT64, ("patches",))
        compress = g.input("compress", ir.DataType.BOOL, ())
        views = g.op("Shape", patches, start=0, end=1)
        x = self._embed(patches, position_ids)
        for i, layer in enumerate(self.model.vision_tower.layers):
            assert isinstance(layer, VisionLayer)
            x = self._layer(f"layers.{i}", layer, x, views)
            if i == self.model.config.insert_layer_id:
                x = self._compress_if(compress, x)
        x = self._norm("post_layernorm", self.model.vision_tower.post_layernorm, x)
        x = self._merge(x)
        hidden = config.text.hidden_size
        shape = g.op("Concat", views, g.constant([-1, hidden]), axis=0)
        features = g.op("Reshape", x, shape)
        g.output("features", features, ir.DataType.FLOAT, ("views", "tokens", hidden))
        return g.model()

    def _embed(self, patches: ir.Value, position_ids: ir.Value) -> ir.Value:
        """uint8 [V, N, P] to [V * N, D]; the normalisation of the pixels is folded into the weights."""
        g, tower, dim = self.graph, self.model.vision_tower, self.model.config.vision.patch_dim

        def folded() -> tuple[torch.Tensor, torch.Tensor]:
            repeats = dim // 3
            mean, std = (
                torch.tensor(v).double().repeat(repeats) for v in (self.model.pixel_mean, self.model.pixel_std)
            )
            weight = tower.patch_embedding.weight.detach().double() / (255 * std)
            bias = tower.patch_embedding.bias.detach().double() - weight @ (255 * mean)
            return weight.float(), bias.float()

        weight = g.weight("patch_embedding.weight", ir.DataType.FLOAT, (self.width, dim), lambda: folded()[0].numpy())
        bias = g.weight("patch_embedding.bias", ir.DataType.FLOAT, (self.width,), lambda: folded()[1].numpy())
        rows = g.op("Reshape", g.op("Cast", patches, to=ir.DataType.FLOAT), g.constant([-1, dim]))
        x = g.op("Gemm", rows, weight, bias, transB=1)
        table = self._plain("position_embedding.weight", tower.position_embedding.weight)
        positions = g.op("Gather", table, position_ids)
        shaped = g.op("Reshape", x, g.op("Concat", g.constant([-1]), g.op("Shape", positions), axis=0))
        return self._rows(g.op("Add", shaped, positions))

    def _plain(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """A weight in fp32."""

        def make() -> Array:
            return tensor.detach().float().numpy()

        return self.graph.weight(name, ir.DataType.FLOAT, tuple(tensor.shape), make)

    def _rows(self, x: ir.Value, width: int | None = None) -> ir.Value:
        return self.graph.op("Reshape", x, self.graph.constant([-1, width or self.width]))

    def _norm(self, name: str, norm: nn.LayerNorm, x: ir.Value) -> ir.Value:
        g = self.graph
        scale, bias = self._plain(f"{name}.weight", norm.weight), self._plain(f"{name}.bias", norm.bias)
        return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=norm.eps)

    def _linear(self, name: str, x: ir.Value, *layers: nn.Linear) -> ir.Value:
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return linear(self.graph, name, x, weights, self.scheme, biases)

    def _linear_gelu(self, name: str, x: ir.Value, layer: nn.Linear) -> ir.Value:
        """GELU in its tanh form of a linear layer."""
        return self.graph.contrib("FastGelu", self._linear(name, x, layer))

    def _attention(self, name: str, attention: ViewAttention, x: ir.Value, first_two: ir.Value) -> ir.Value:
        """[T, D] to [T, D]; `first_two` is the shape [V, -1] or the like of sequences that do not see each other."""
        g = self.graph
        joined = self._linear(f"{name}.qkv_proj", x, attention.q_proj, attention.k_proj, attention.v_proj)
        shape = g.op("Concat", first_two, g.constant([3 * self.width]), axis=0)
        out = self._attend(g.op("Reshape", joined, shape), attention)
        return self._linear(f"{name}.out_proj", self._rows(out), attention.out_proj)

    def _attend(self, joined: ir.Value, attention: ViewAttention) -> ir.Value:
        """Queries, keys and values side by side, [sequences, tokens, 3 D], to [sequences, tokens, D]."""
        q, k, v = self.graph.ops("Split", 3, joined, axis=-1, num_outputs=3)
        return self.graph.contrib("MultiHeadAttention", q, k, v, num_heads=attention.heads)

    def _layer(self, name: str, layer: VisionLayer, x: ir.Value, views: ir.Value) -> ir.Value:
        g = self.graph
        shape = g.op("Concat", views, g.constant([-1]), axis=0)
        normed = self._norm(f"{name}.layer_norm1", layer.layer_norm1, x)
        x = g.op("Add", x, self._attention(f"{name}.self_attn", layer.self_attn, normed, shape))
        normed = self._norm(f"{name}.layer_norm2", layer.layer_norm2, x)
        hidden = self._linear_gelu(f"{name}.fc1", normed, layer.mlp.fc1)
        return g.op("Add", x, self._linear(f"{name}.fc2", hidden, layer.mlp.fc2))

    def _compress_if(self, compress: ir.Value, x: ir.Value) -> ir.Value:
        """Early compression where `compress` says so, else x unchanged."""
        outer, merger = self.graph, self.model.vision_tower.vit_merger
        assert isinstance(merger, EarlyCompression)
        assert isinstance(merger.self_attn, ViewAttention)
        inner = self.graph = outer.branch("compress")
        normed = self._norm("vit_merger.layer_norm1", merger.layer_norm1, x)
        windows = inner.constant([-1, WINDOW])
        seen = inner.op("Add", x, self._attention("vit_merger.self_attn", merger.self_attn, normed, windows))
        mean = inner.op(
            "ReduceMean",
            inner.op("Reshape", seen, inner.constant([-1, WINDOW, self.width])),
            inner.constant([1]),
            keepdims=0,
        )
        folded = self._norm("vit_merger.pre_norm", merger.pre_norm, self._rows(seen, WINDOW * self.width))
        hidden = self._linear_gelu("vit_merger.linear_1", folded, merger.linear_1)
        merged = inner.op("Add", self._linear("vit_merger.linear_2", hidden, merger.linear_2), mean)
        other = outer.branch("keep")
        kept = other.op("Identity", x)
        self.graph = outer
        return outer.op("If", compress, then_branch=inner.subgraph(merged), else_branch=other.subgraph(kept))

    def _merge(self, x: ir.Value) -> ir.Value:
        g, merger = self.graph, self.model.merger
        folded = self._norm("merger.pre_norm", merger.pre_norm, self._rows(x, WINDOW * self.width))
        hidden = g.contrib("Gelu", self._linear("merger.linear_1", folded, merger.linear_1))
        return self._linear("merger.linear_2", hidden, merger.linear_2)
