"""The decoder as one graph for prompts and for steps: S new tokens of each of B sequences, behind what caches hold.

A prompt is one sequence of many tokens, a step many sequences of one. Keys and values live in preallocated buffers that
are input and output at once (`GroupQueryAttention` writes the new rows only); conv and recurrent states likewise.

Shapes:  B sequences · S new tokens of each · T = B * S · D hidden · V vocabulary · R rows of wanted logits
         H query heads · Hk KV heads · E head dim · L capacity of the KV buffers
         C conv channels · Hv value heads · K key dim · W taps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from pocketvlm.bundle import Scheme
from pocketvlm.config import TextConfig
from pocketvlm.export.onnx.graph import Array, GraphBuilder
from pocketvlm.export.onnx.linear import linear, token_linear
from pocketvlm.export.onnx.pieces import Half, Parameter, Piece
from pocketvlm.model.weights import Weights

FLOAT, INT64, INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
L2_EPS = 1e-6  # of the normalised queries and keys of linear attention
TO_THE_END = 2**62


class DecoderGraph:
    """Writes the graph of a language model, whose weights have the names of its parameters (`layers.0.mlp.…`) where a
    product is of one layer.

    Args:
        scheme: of the layers' products.
        head_scheme: of the head.
        compiled: whether products may be operators of our own.
    """

    def __init__(self, weights: Weights, scheme: Scheme, head_scheme: Scheme, *, compiled: bool = False) -> None:
        self.weights, self.config = weights, weights.config.text
        self.scheme, self.head_scheme = scheme, head_scheme
        self.splits: dict[tuple[ir.Value, tuple[int, ...]], Sequence[ir.Value]] = {}
        self.graph = GraphBuilder("decoder", compiled=compiled)

    def build(self) -> ir.Model:
        """Inputs: `embeddings` fp32 [B, S, D], `positions` int64 [B, S], `rows` int64 [R] of the T tokens whose logits
        are wanted, `seqlens_k` int32 [B] (tokens of each sequence with the new ones, less one), `total_sequence_length`
        int32 [] (of the longest), and the caches of each layer i: `past_key.i`, `past_value.i` [B, Hk, L, E], or
        `past_conv.i` [B, W - 1, C] and `past_recurrent.i` [B, Hv, K, V].

        Outputs: `logits` fp32 [R, V], `hidden` fp32 [R, D] that they were made of, and every cache as `present_…`.
        """
        g, config = self.graph, self.config
        x = g.input("embeddings", FLOAT, ("batch", "new", config.hidden_size))
        positions = g.input("positions", INT64, ("batch", "new"))
        rows = g.input("rows", INT64, ("rows",))
        self.seqlens_k = g.input("seqlens_k", INT32, ("batch",))
        self.total = g.input("total_sequence_length", INT32, ())
        self.rotary = self._rotary_tables(positions)
        self.windows = self._windows(positions)
        normed = self._rms(x, "layers.0.input_layernorm", offset=1.0)
        for i, kind in enumerate(config.layer_types):
            name = f"layers.{i}"
            mixed = self._delta_net(i, normed) if kind == "linear_attention" else self._attention(i, normed)
            norm = f"{name}.post_attention_layernorm"
            normed, x = self._add_rms(x, mixed, norm, norm)
            fed = self._mlp(f"{name}.mlp", normed)
            after = f"layers.{i + 1}.input_layernorm" if i + 1 < config.num_hidden_layers else "norm"
            normed, x = self._add_rms(x, fed, f"{name}.next_norm", after)
        wanted = g.op("Gather", g.op("Reshape", normed, g.constant([-1, config.hidden_size])), rows, axis=0)
        head = self._piece("embed_tokens" if config.tie_word_embeddings else "lm_head")
        logits = token_linear(g, "lm_head", wanted, [head], self.head_scheme)
        # These come first, caches after them in the order of the layers.
        caches, g.outputs = g.outputs, []
        g.output("logits", logits, FLOAT, ("rows", config.vocab_size))
        g.output("hidden", wanted, FLOAT, ("rows", config.hidden_size))
        g.outputs += caches
        return g.model()

    def _piece(self, layer: str) -> Parameter:
        """The weight of a layer without a bias."""
        return Parameter(self.weights, f"language_model.{layer}.weight")

    def _array(self, parameter: str) -> Array:
        return self.weights.array(f"language_model.{parameter}")

    def _small(self, name: str, shape: Sequence[int], make: Callable[[], Array]) -> ir.Value:
        """A small fp32 weight."""
        return self.graph.weight(name, FLOAT, shape, make)

    def _norm(self, name: str, norm: str, offset: float) -> ir.Value:
        """The weight of a norm, which may be stored as an offset from one."""
        shape = self._piece(norm).shape
        return self._small(f"{name}.weight", shape, lambda: self._array(f"{norm}.weight") + np.float32(offset))

    def _rms(self, x: ir.Value, name: str, offset: float = 0.0) -> ir.Value:
        scale = self._norm(name, name, offset)
        return self.graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=self.config.rms_norm_eps)

    def _add_rms(self, x: ir.Value, y: ir.Value, name: str, norm: str) -> tuple[ir.Value, ir.Value]:
        """(norm of x + y, x + y)."""
        scale = self._norm(name, norm, 1.0)
        attributes = {"epsilon": self.config.rms_norm_eps}
        out = self.graph.contrib("SkipSimplifiedLayerNormalization", x, y, scale, outputs=4, **attributes)
        return out[0], out[3]

    def _heads(self, x: ir.Value, heads: int, dim: int) -> ir.Value:
        """[B, S, heads * dim] to [B, S, heads, dim]."""
        return self.graph.op("Reshape", x, self.graph.constant([0, 0, heads, dim]))

    def _flat(self, x: ir.Value) -> ir.Value:
        """[B, S, heads, dim] to [B, S, heads * dim]."""
        return self.graph.op("Reshape", x, self.graph.constant([0, 0, -1]))

    def _silu(self, x: ir.Value) -> ir.Value:
        return self.graph.contrib("QuickGelu", x, alpha=1.0)

    def _split(self, x: ir.Value, *widths: int) -> Sequence[ir.Value]:
        """Parts of the last dimension; the same parts of the same value are made once."""
        if (x, widths) not in self.splits:
            self.splits[x, widths] = self.graph.ops("Split", len(widths), x, self.graph.constant(widths), axis=-1)
        return self.splits[x, widths]

    def _out(self, name: str, gated: ir.Value) -> ir.Value:
        """The product of gated values that goes back to the hidden width."""
        return token_linear(self.graph, name, gated, [self._piece(name)], self.scheme, rotated=True)

    def _mlp(self, name: str, x: ir.Value) -> ir.Value:
        parts = [self._piece(f"{name}.{projection}") for projection in ("gate_proj", "up_proj")]
        joined = token_linear(self.graph, f"{name}.gate_up_proj", x, parts, self.scheme)
        return self._mlp_out(f"{name}.down_proj", joined)

    def _mlp_out(self, name: str, joined: ir.Value) -> ir.Value:
        """From gate and up projections, side by side."""
        gate, up = self._split(joined, self.config.intermediate_size, self.config.intermediate_size)
        return self._out(name, self.graph.op("Mul", self._silu(gate), up))

    def _rotary_tables(self, positions: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Row numbers [B, S] and the cosines and sines [T, rotary dim / 2] that they point at."""
        g, config = self.graph, self.config
        exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
        frequency = np.float32(1) / _rounded(np.power, config.rope_theta, exponent)
        column = g.op("Reshape", g.op("Cast", positions, to=FLOAT), g.constant([-1, 1]))
        angles = g.op("Mul", column, g.constant(frequency, np.float32))
        batch_and_new = g.op("Shape", positions)
        count = g.op("ReduceProd", batch_and_new, keepdims=0)
        numbers = g.op("Range", g.constant(0), count, g.constant(1))
        return g.op("Reshape", numbers, batch_and_new), g.op("Cos", angles), g.op("Sin", angles)

    def _windows(self, positions: ir.Value) -> ir.Value:
        """[S, W]: the rows that the convolution reads for each new token, of those kept and the new ones together."""
        g = self.graph
        new = g.op("Squeeze", g.op("Shape", positions, start=1), g.constant([0]))
        firsts = g.op("Range", g.constant(0), new, g.constant(1))
        taps = g.constant(np.arange(self.config.linear_conv_kernel_dim))
        return g.op("Add", g.op("Unsqueeze", firsts, g.constant([1])), taps)

    def _attention(self, i: int, x: ir.Value) -> ir.Value:
        g, config, name = self.graph, self.config, f"layers.{i}.self_attn"
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        # Query and gate stand side by side in each head; here all queries, then all gates.
        q_gate = f"language_model.{name}.q_proj.weight"
        parts: list[Piece] = [Half(self.weights, q_gate, dim, part) for part in (0, 1)]
        parts += [self._piece(f"{name}.{projection}") for projection in ("k_proj", "v_proj")]
        joined = token_linear(g, f"{name}.qkv_proj", x, parts, self.scheme)
        q, _, k, v = self._split(joined, *_attention_widths(config))
        q = self._rms(self._heads(q, heads, dim), f"{name}.q_norm", 1.0)
        k = self._rms(self._heads(k, kv_heads, dim), f"{name}.k_norm", 1.0)
        q, k = self._rotate(self._flat(q), heads), self._rotate(self._flat(k), kv_heads)
        shape = ("batch", kv_heads, "capacity", dim)
        past = [g.input(f"past_{kind}.{i}", FLOAT, shape) for kind in ("key", "value")]
        out, *present = self._attend(q, k, v, past)
        for kind, value in zip(("key", "value"), present, strict=True):
            g.output(f"present_{kind}.{i}", value, FLOAT, shape)
        return self._attention_out(f"{name}.o_proj", out, joined)

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, past: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """What the new tokens get, and the caches with their keys and values."""
        made: Sequence[ir.Value] = self.graph.contrib(
            "GroupQueryAttention",
            q,
            k,
            v,
            *past,
            self.seqlens_k,
            self.total,
            outputs=3,
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
        )
        return made

    def _attention_out(self, name: str, out: ir.Value, joined: ir.Value) -> ir.Value:
        gate = self._split(joined, *_attention_widths(self.config))[1]
        return self._out(name, self.graph.op("Mul", out, self.graph.op("Sigmoid", gate)))

    def _rotate(self, x: ir.Value, heads: int) -> ir.Value:
        attributes = {"num_heads": heads, "rotary_embedding_dim": self.config.rotary_dim}
        return self.graph.contrib("RotaryEmbedding", x, *self.rotary, **attributes)

    def _delta_net(self, i: int, x: ir.Value) -> ir.Value:
        g, config, name = self.graph, self.config, f"layers.{i}.linear_attn"
        heads = config.linear_num_value_heads
        qkv, z, *steering = (self._piece(f"{name}.in_proj_{part}") for part in ("qkv", "z", "b", "a"))
        joined = token_linear(g, f"{name}.in_proj", x, [qkv, z], self.scheme)
        # Decay and update rate steer a state that lasts for the whole sequence: 2 * Hv rows, always in fp32.
        gates = linear(g, f"{name}.gates", x, steering, "fp32")
        bias = self._small(f"{name}.dt_bias", (heads,), lambda: self._array(f"{name}.dt_bias"))
        rate = self._small(f"{name}.decay", (heads,), lambda: -_rounded(np.exp, self._array(f"{name}.A_log")))
        state_shape = ("batch", heads, config.linear_key_head_dim, config.linear_value_head_dim)
        past = g.input(f"past_recurrent.{i}", FLOAT, state_shape)
        out, present = self._delta_rule(self._convolve(i, joined), past, gates, bias, rate)
        g.output(f"present_recurrent.{i}", present, FLOAT, state_shape)
        return self._delta_net_out(name, out, joined)

    def _delta_rule(
        self, qkv: Sequence[ir.Value], past: ir.Value, gates: ir.Value, bias: ir.Value, rate: ir.Value
    ) -> Sequence[ir.Value]:
        """What the new tokens get, and the state behind them. The gates [B, S, 2 * Hv] are update rates, then decays,
        as they come from their product; bias and rate [Hv] are of the decays."""
        g, heads = self.graph, self.config.linear_num_value_heads
        q, k, v = qkv
        b, a = self._split(gates, heads, heads)
        decay = g.op("Mul", g.op("Softplus", g.op("Add", a, bias)), rate)
        made: Sequence[ir.Value] = g.contrib(
            "LinearAttention",
            self._repeated(q),
            self._repeated(k),
            v,
            past,
            decay,
            g.op("Sigmoid", b),
            outputs=2,
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=self.config.linear_key_head_dim**-0.5,
            update_rule="gated_delta",
        )
        return made

    def _delta_net_out(self, name: str, out: ir.Value, joined: ir.Value) -> ir.Value:
        config = self.config
        z = self._split(joined, config.linear_conv_dim, config.linear_value_dim)[1]
        heads = self._heads(out, config.linear_num_value_heads, config.linear_value_head_dim)
        normed = self._rms(heads, f"{name}.norm")
        gated = self.graph.op("Mul", self._flat(normed), self._silu(z))
        return self._out(f"{name}.out_proj", gated)

    def _convolve(self, i: int, joined: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """[B, S, C] to queries, keys (both normalised) and values [B, S, …], by products of gathered windows: ONNX
        Runtime's convolutions take four times as long at a step of one sequence, and fifteen times at one of eight."""
        g, config, keep = self.graph, self.config, self.config.linear_conv_kernel_dim - 1
        mixed = self._split(joined, config.linear_conv_dim, config.linear_value_dim)[0]
        shape = ("batch", keep, config.linear_conv_dim)
        past = g.input(f"past_conv.{i}", FLOAT, shape)
        extended = g.op("Concat", past, mixed, axis=1)
        newest = g.op("Slice", extended, g.constant([-keep]), g.constant([TO_THE_END]), g.constant([1]))
        g.output(f"present_conv.{i}", newest, FLOAT, shape)
        terms = g.op("Mul", g.op("Gather", extended, self.windows, axis=1), self._taps(i))  # [B, S, W, C]
        total = g.op("ReduceSum", terms, g.constant([2]), keepdims=0)
        width, dim = config.linear_key_dim, config.linear_key_head_dim
        both, v = self._split(self._silu(total), 2 * width, config.linear_value_dim)
        # Each head at length one: an RMS norm whose weight undoes the square root of the dimension.
        scale = g.constant(np.full(dim, dim**-0.5), np.float32)
        heads = self._heads(both, 2 * config.linear_num_key_heads, dim)
        normed = g.op("SimplifiedLayerNormalization", heads, scale, axis=-1, epsilon=L2_EPS / dim)
        q, k = self._split(self._flat(normed), width, width)
        return q, k, v

    def _taps(self, i: int) -> ir.Value:
        shape = self.config.linear_conv_kernel_dim, self.config.linear_conv_dim
        return self._small(
            f"layers.{i}.conv", shape, lambda: self._array(f"layers.{i}.linear_attn.conv1d.weight")[:, 0].T
        )

    def _repeated(self, x: ir.Value) -> ir.Value:
        """Each key head as often as it has value heads."""
        g, heads = self.graph, self.config.linear_num_key_heads
        copies = self.config.linear_num_value_heads // heads
        if copies == 1:
            return x
        wide = g.op("Reshape", x, g.constant([0, 0, heads, 1, self.config.linear_key_head_dim]))
        return self._flat(g.op("Expand", wide, g.constant([1, 1, 1, copies, 1])))


def _attention_widths(config: TextConfig) -> tuple[int, int, int, int]:
    """Of queries, gates, keys and values as they stand side by side."""
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return queries, queries, keys, keys


def _rounded(function: np.ufunc, *arguments: ArrayLike) -> Array:
    """In fp64 and then rounded to fp32, which is what PyTorch gives; NumPy in fp32 is a last digit off."""
    values: Array = function(*arguments, dtype=np.float64).astype(np.float32)
    return values
