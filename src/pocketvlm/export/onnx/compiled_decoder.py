"""The decoder of operators that are compiled for this machine: what stands around its products goes into them.

Shapes:  B sequences · S new tokens of each · C conv channels · V value width · Q width of all queries
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import nn

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.decoder import FLOAT, L2_EPS, DecoderGraph
from pocketvlm.export.onnx.linear import Gate, can_compile, compiled_linear
from pocketvlm.model.text.gated_attention import GatedAttention
from pocketvlm.model.text.gated_delta_net import GatedDeltaNet
from pocketvlm.model.vlm import MiniCPMV

LANES = 16  # values of a register: heads of other sizes are left to standard operators
MOST_TAPS = 8
HEAD_DIMS = (64, 128, 256)  # of full attention, see attention_tiles.h


class CompiledDecoderGraph(DecoderGraph):
    """As `DecoderGraph`, with the same inputs and outputs; layers of sizes that operators do not take stay so."""

    def __init__(self, model: MiniCPMV, scheme: Scheme, head_scheme: Scheme) -> None:
        super().__init__(model, scheme, head_scheme, compiled=True)

    def _gated(self, name: str, x: ir.Value, layer: nn.Linear, gate: Gate) -> ir.Value:
        return compiled_linear(self.graph, name, x, [layer.weight], self.scheme, rotated=True, gate=gate)

    def _mlp_out(self, name: str, joined: ir.Value, layer: nn.Linear) -> ir.Value:
        if not can_compile(self.graph, layer.in_features, self.scheme):
            return super()._mlp_out(name, joined, layer)
        return self._gated(name, joined, layer, Gate(joined, "silu", x_offset=layer.in_features))

    def _attend(
        self, attention: GatedAttention, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]
    ) -> Sequence[ir.Value]:
        if attention.head_dim not in HEAD_DIMS or self.scheme == "fp32":
            return super()._attend(attention, q, k, v, past)
        heads = {"num_heads": attention.heads, "kv_num_heads": attention.kv_heads}
        made: Sequence[ir.Value] = self.graph.own("CausalAttention", q, k, v, *past, self.seqlens_k, outputs=3, **heads)
        return made

    def _attention_out(self, name: str, out: ir.Value, joined: ir.Value, attention: GatedAttention) -> ir.Value:
        layer = attention.o_proj
        if not can_compile(self.graph, layer.in_features, self.scheme):
            return super()._attention_out(name, out, joined, attention)
        return self._gated(name, out, layer, Gate(joined, "sigmoid", offset=layer.in_features))

    def _delta_net_out(self, name: str, out: ir.Value, joined: ir.Value, net: GatedDeltaNet) -> ir.Value:
        width = net.out_proj.in_features
        if net.value_dim % LANES or not can_compile(self.graph, width, self.scheme):
            return super()._delta_net_out(name, out, joined, net)
        norm = self._small(f"{name}.norm.weight", (net.value_dim,), lambda: net.norm.weight)
        epsilon = self.config.rms_norm_eps
        gate = Gate(joined, "silu", offset=net.channels, norm=norm, head=net.value_dim, epsilon=epsilon)
        return self._gated(f"{name}.out_proj", out, net.out_proj, gate)

    def _convolve(self, i: int, net: GatedDeltaNet, joined: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        values = net.value_heads * net.value_dim
        if net.key_dim % LANES or values % net.key_dim or net.taps > MOST_TAPS:
            return super()._convolve(i, net, joined)
        g, shape = self.graph, ("batch", net.taps - 1, net.channels)
        past = g.input(f"past_conv.{i}", FLOAT, shape)
        attributes = {"key_width": net.key_heads * net.key_dim, "head": net.key_dim, "epsilon": L2_EPS}
        q, k, v, present = g.own("CausalConv", joined, past, self._taps(i, net), outputs=4, **attributes)
        g.output(f"present_conv.{i}", present, FLOAT, shape)
        return self._repeated(net, q), self._repeated(net, k), v
