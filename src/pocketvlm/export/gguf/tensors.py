"""Our weights under the names, shapes and conventions of llama.cpp's GGUF files.

What differs from the published values: norms of the decoder carry their "+ 1", decays their "-exp", the convolution has
no empty axis, the patches' weight is a convolution again, and where several value heads of linear attention share a key
head, all firsts come before all seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pocketvlm.config import DownsampleMode, TextConfig
from pocketvlm.model.checkpoint import published_tensor
from pocketvlm.model.vlm import MiniCPMV

# Ours → GGUF's; in layers of both kinds.
_DECODER_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
_VISION_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    # of the early compression only
    "pre_norm": "ds_ln",
    "linear_1": "ds_ffn_up",
    "linear_2": "ds_ffn_down",
}
_MERGER = {"pre_norm": "mm.input_norm", "linear_1": "mm.up", "linear_2": "mm.down"}
_TOWER = {
    "patch_embedding": "v.patch_embd",
    "position_embedding": "v.position_embd",
    "post_layernorm": "v.post_ln",
}
_UNSHIFTED = "linear_attn.norm.weight"  # the one norm of the decoder whose weight is stored whole


def decoder_tensors(model: MiniCPMV) -> Iterator[tuple[str, Tensor]]:
    """(GGUF name, values) of the language model; a tied head is left out."""
    for ours, tensor in model.language_model.named_parameters():
        if ours.startswith("layers."):
            _, block, rest = ours.split(".", 2)
            name = f"blk.{block}.{_DECODER_LAYER[rest]}"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[ours.split(".")[0]]
            name += ".weight"
        yield name, _converted(ours, tensor.detach(), model.config.text)


def _converted(ours: str, tensor: Tensor, config: TextConfig) -> Tensor:
    _, _, rest = ours.partition("linear_attn.")
    if rest:
        tensor = _by_rank(rest.removesuffix(".weight"), tensor, config)
    if rest == "A_log":
        return -tensor.float().exp()
    if rest == "conv1d.weight":
        return tensor.squeeze(1)
    if ours.endswith("norm.weight") and not ours.endswith(_UNSHIFTED):
        return tensor.float() + 1
    return tensor


def _by_rank(layer: str, tensor: Tensor, config: TextConfig) -> Tensor:
    """Value heads by their rank among those of a key head (GGML repeats all keys in turn), not key head by key head."""
    copies = config.linear_num_value_heads // config.linear_num_key_heads
    heads = torch.arange(config.linear_num_value_heads).unflatten(0, (-1, copies)).T.flatten()
    dim = config.linear_value_head_dim
    rows = (heads[:, None] * dim + torch.arange(dim)).flatten()
    if layer in ("A_log", "dt_bias", "in_proj_a", "in_proj_b"):
        return tensor[heads]
    if layer == "in_proj_z":
        return tensor[rows]
    if layer in ("in_proj_qkv", "conv1d"):  # queries and keys stand before the values
        return torch.cat([tensor[: -len(rows)], tensor[-len(rows) :][rows]])
    return tensor[:, rows] if layer == "out_proj" else tensor


def vision_tensors(model: MiniCPMV, downsample_mode: DownsampleMode) -> Iterator[tuple[str, Tensor]]:
    """(GGUF name, values) of tower and merger; at 4x without the early compression, which it never runs."""
    for ours, _ in model.named_parameters():
        part, _, rest = ours.partition(".")
        stem, _, leaf = rest.rpartition(".")
        if part == "merger":
            name = _MERGER[stem]
        elif part != "vision_tower":
            continue
        elif stem.startswith("layers."):
            _, block, inner = stem.split(".", 2)
            name = f"v.blk.{block}.{_VISION_LAYER[inner]}"
        elif stem.startswith("vit_merger."):
            if downsample_mode == "4x":
                continue
            name = "v.vit_merger." + _VISION_LAYER[stem.removeprefix("vit_merger.")]
        else:
            name = _TOWER[stem]
        yield f"{name}.{leaf}", published_tensor(model, ours)
