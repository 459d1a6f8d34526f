"""The decoder of operators that are compiled for this machine: what stands around its products goes into them.

Shapes:  B sequences · S new tokens of each · C conv channels · V value width · Q width of all queries
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pocketvlm.bundle import Scheme
from pocketvlm.export.onnx.decoder import FLOAT, L2_EPS, DecoderGraph
from pocketvlm.export.onnx.linear import Gate, can_compile, compiled_linear
from pocketvlm.model.weights import Weights

LANES = 16  # values of a register: heads of other sizes are left to standard operators
MOST_TAPS = 8
MOST_KEYS = 256  # of a head of linear attention, see delta_rule.h
HEAD_DIMS = (64, 128, 256)  # of full attention, see prompt_attention.h


class CompiledDecoderGraph(DecoderGraph):
    """As `DecoderGraph`, with the same inputs and outputs; layers of sizes that operators do not take stay so."""

    def __init__(self, weights: Weights, scheme: Scheme, head_scheme: Scheme) -> None:
        super().__init__(weights, scheme, head_scheme, compiled=True)

    def _gated(self, name: str, x: ir.Value, gate: Gate) -> ir.Value:
        return compiled_linear(self.graph, name, x, [self._piece(name)], self.scheme, rotated=True, gate=gate)

    def _mlp_out(self, name: str, joined: ir.Value) -> ir.Value:
        width = self.config.intermediate_size
        if not can_compile(self.graph, width, self.scheme):
            return super()._mlp_out(name, joined)
        return self._gated(name, joined, Gate(joined, "silu", x_offset=width))

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]) -> Sequence[ir.Value]:
        config = self.config
        if config.head_dim not in HEAD_DIMS or self.scheme == "fp32":
            return super()._attend(q, k, v, past)
        heads = {"num_heads": config.num_attention_heads, "kv_num_heads": config.num_key_value_heads}
        made: Sequence[ir.Value] = self.graph.own("CausalAttention", q, k, v, *past, self.seqlens_k, outputs=3, **heads)
        return made

    def _attention_out(self, name: str, out: ir.Value, joined: ir.Value) -> ir.Value:
        width = self.config.num_attention_heads * self.config.head_dim
        if not can_compile(self.graph, width, self.scheme):
            return super()._attention_out(name, out, joined)
        return self._gated(name, out, Gate(joined, "sigmoid", offset=width))

    def _delta_net_out(self, name: str, out: ir.Value, joined: ir.Value) -> ir.Value:
        config, head = self.config, self.config.linear_value_head_dim
        if head % LANES or not can_compile(self.graph, config.linear_value_dim, self.scheme):
            return super()._delta_net_out(name, out, joined)
        norm = self._small(f"{name}.norm.weight", (head,), lambda: self._array(f"{name}.norm.weight"))
        offset, epsilon = config.linear_conv_dim, config.rms_norm_eps
        gate = Gate(joined, "silu", offset=offset, norm=norm, head=head, epsilon=epsilon)
        return self._gated(f"{name}.out_proj", out, gate)

    def _convolve(self, i: int, joined: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        config, head, taps = self.config, self.config.linear_key_head_dim, self.config.linear_conv_kernel_dim
        if head % LANES or config.linear_value_dim % head or taps > MOST_TAPS:
            return super()._convolve(i, joined)
        g, shape = self.graph, ("batch", taps - 1, config.linear_conv_dim)
        past = g.input(f"past_conv.{i}", FLOAT, shape)
        attributes = {"key_width": config.linear_key_dim, "head": head, "epsilon": L2_EPS}
        q, k, v, present = g.own("CausalConv", joined, past, self._taps(i), outputs=4, **attributes)
        g.output(f"present_conv.{i}", present, FLOAT, shape)
        return q, k, v

    def _delta_rule(
        self, qkv: Sequence[ir.Value], past: ir.Value, gates: ir.Value, bias: ir.Value, rate: ir.Value
    ) -> Sequence[ir.Value]:
        config, keys = self.config, self.config.linear_key_head_dim
        if keys % LANES or config.linear_value_head_dim % LANES or keys > MOST_KEYS:
            return super()._delta_rule(qkv, past, gates, bias, rate)
        heads = {"heads": config.linear_num_value_heads, "key_heads": config.linear_num_key_heads}
        made: Sequence[ir.Value] = self.graph.own("DeltaRule", *qkv, past, gates, bias, rate, outputs=2, **heads)
        return made
