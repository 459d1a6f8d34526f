"""Names and shapes of a model's parameters, from its configuration alone.

Whoever reads weights without building the model asks here; `tests/model/test_weights.py` compares with the modules.

Shapes:  D hidden size of the part · F of its wide layers
"""

from __future__ import annotations

from collections.abc import Iterator

from pocketvlm.config import ModelConfig, TextConfig, VisionConfig
from pocketvlm.model.vision.view_order import WINDOW

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Our name of every parameter → its shape, in the order of the modules."""
    return dict((*_tower(config), *_merger(config), *_decoder(config.text)))


def _linear(name: str, outputs: int, inputs: int) -> Named:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _tower(config: ModelConfig) -> Named:
    vision, name = config.vision, "vision_tower"
    width, folded = vision.hidden_size, WINDOW * vision.hidden_size
    yield from _linear(f"{name}.patch_embedding", width, vision.patch_dim)
    yield f"{name}.position_embedding.weight", (vision.positions_per_side**2, width)
    for i in range(vision.num_hidden_layers):
        yield from _vision_layer(f"{name}.layers.{i}", vision)
    yield from _norm(f"{name}.vit_merger.layer_norm1", width)
    yield from _vision_attention(f"{name}.vit_merger.self_attn", width)
    yield from _norm(f"{name}.vit_merger.pre_norm", folded)
    yield from _linear(f"{name}.vit_merger.linear_1", WINDOW * vision.intermediate_size, folded)
    yield from _linear(f"{name}.vit_merger.linear_2", width, WINDOW * vision.intermediate_size)
    yield from _norm(f"{name}.post_layernorm", width)


def _vision_layer(name: str, vision: VisionConfig) -> Named:
    yield from _norm(f"{name}.layer_norm1", vision.hidden_size)
    yield from _vision_attention(f"{name}.self_attn", vision.hidden_size)
    yield from _norm(f"{name}.layer_norm2", vision.hidden_size)
    yield from _linear(f"{name}.mlp.fc1", vision.intermediate_size, vision.hidden_size)
    yield from _linear(f"{name}.mlp.fc2", vision.hidden_size, vision.intermediate_size)


def _vision_attention(name: str, width: int) -> Named:
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _linear(f"{name}.{projection}", width, width)


def _merger(config: ModelConfig) -> Named:
    folded = WINDOW * config.vision.hidden_size
    yield from _norm("merger.pre_norm", folded)
    yield from _linear("merger.linear_1", folded, folded)
    yield from _linear("merger.linear_2", config.text.hidden_size, folded)


def _decoder(text: TextConfig) -> Named:
    name, width = "language_model", text.hidden_size
    yield f"{name}.embed_tokens.weight", (text.vocab_size, width)
    for i, kind in enumerate(text.layer_types):
        layer = f"{name}.layers.{i}"
        if kind == "linear_attention":
            yield from _delta_net(f"{layer}.linear_attn", text)
        else:
            yield from _attention(f"{layer}.self_attn", text)
        yield f"{layer}.mlp.gate_proj.weight", (text.intermediate_size, width)
        yield f"{layer}.mlp.up_proj.weight", (text.intermediate_size, width)
        yield f"{layer}.mlp.down_proj.weight", (width, text.intermediate_size)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield f"{name}.norm.weight", (width,)
    if not text.tie_word_embeddings:
        yield f"{name}.lm_head.weight", (text.vocab_size, width)


def _attention(name: str, text: TextConfig) -> Named:
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    yield f"{name}.q_proj.weight", (2 * queries, text.hidden_size)  # of each head the query, then its gate
    yield f"{name}.k_proj.weight", (keys, text.hidden_size)
    yield f"{name}.v_proj.weight", (keys, text.hidden_size)
    yield f"{name}.o_proj.weight", (text.hidden_size, queries)
    yield f"{name}.q_norm.weight", (text.head_dim,)
    yield f"{name}.k_norm.weight", (text.head_dim,)


def _delta_net(name: str, text: TextConfig) -> Named:
    heads, values, width = text.linear_num_value_heads, text.linear_value_dim, text.hidden_size
    yield f"{name}.A_log", (heads,)
    yield f"{name}.dt_bias", (heads,)
    yield f"{name}.in_proj_qkv.weight", (text.linear_conv_dim, width)
    yield f"{name}.in_proj_z.weight", (values, width)
    yield f"{name}.in_proj_b.weight", (heads, width)
    yield f"{name}.in_proj_a.weight", (heads, width)
    yield f"{name}.conv1d.weight", (text.linear_conv_dim, 1, text.linear_conv_kernel_dim)
    yield f"{name}.norm.weight", (text.linear_value_head_dim,)
    yield f"{name}.out_proj.weight", (width, values)
