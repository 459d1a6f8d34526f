"""Checkpoints → the two GGUF files that llama.cpp and programs built on it read: the decoder, and tower and merger.

Names and keys are those of llama.cpp's architectures `qwen35` and `clip` with the projector `minicpmv4_6`. Weights keep
their values: matrices in `dtype`, everything that is no product in fp32. llama.cpp's `llama-quantize` makes smaller
files of the decoder's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pocketvlm.config import DownsampleMode, ImageConfig, ModelConfig
from pocketvlm.errors import CheckpointError, ConfigError, MissingExtraError
from pocketvlm.export.gguf.tensors import decoder_tensors, vision_tensors
from pocketvlm.export.new_directory import new_directory, unchanged
from pocketvlm.model.checkpoint import load_model, stored_dtype
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing.prompt.template import template_source
from pocketvlm.processing.prompt.tokenizer import TURN_END
from pocketvlm.text_files import read_json

try:
    import gguf
except ImportError:
    raise MissingExtraError("gguf", "gguf") from None

GGUFType = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: tuple[GGUFType, ...] = get_args(GGUFType)
Progress = Callable[[int, int], None]

POSITIONS_PER_SIDE = 70  # of the position table: llama.cpp's code knows no other
ROPE_SECTIONS = (11, 11, 10, 0)  # of multi-axis rotary positions; this model's axes all carry the same number
_CONTROL, _USER_DEFINED, _NORMAL, _UNUSED = (
    int(kind)
    for kind in (
        gguf.TokenType.CONTROL,
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.NORMAL,
        gguf.TokenType.UNUSED,
    )
)


@dataclass(frozen=True)
class GGUFFiles:
    """What was written: the decoder's file and the tower's."""

    model: Path
    projector: Path


def write_gguf(
    checkpoint: Path | ModelDirectory,
    out: Path,
    dtype: GGUFType = "bf16",
    downsample_mode: DownsampleMode = "16x",
    progress: Progress | None = None,
) -> GGUFFiles:
    """Write both files into the new directory `out`, complete or not at all.

    Args:
        dtype: of the matrices; "q8_0" needs inputs in blocks of 32, others (the tower's 4304) stay f16.
        downsample_mode: a GGUF tower has one rate for good.
        progress: called with (done, in all), in thousandths.

    Raises:
        ConfigError: `out` is there already or cannot be made, or llama.cpp has no place for this model's layout.
        CheckpointError: the checkpoint cannot be read, or changes meanwhile.
        OutputError: the files cannot be written to their end.
    """
    directory = resolve(checkpoint)
    config = directory.config
    _check(config)
    tokens = _vocabulary(read_json(directory.path / "tokenizer.json"), config.text.vocab_size)
    template, weights = template_source(directory.path), stored_dtype(directory.path)
    name = out.resolve().name
    with new_directory(out) as partial, unchanged(directory):
        files = (partial / f"{name}-{dtype}.gguf", partial / f"mmproj-{name}-{downsample_mode}-{dtype}.gguf")
        model = load_model(directory, dtype=weights, merged_dtype=torch.float32, progress=_part(progress, 0, 250))
        writer = _writer(files[0], "qwen35", name, dtype)
        _decoder_keys(writer, config)
        _token_keys(writer, template, config, tokens)
        _write(writer, list(decoder_tensors(model)), dtype, _part(progress, 250, 600))
        writer = _writer(files[1], "clip", name, dtype)
        _vision_keys(writer, config, directory.image_config, downsample_mode)
        _write(writer, list(vision_tensors(model, downsample_mode)), dtype, _part(progress, 600, 1000))
    return GGUFFiles(out / files[0].name, out / files[1].name)


def _check(config: ModelConfig) -> None:
    """Refuse what llama.cpp would load and compute wrongly."""
    text, vision = config.text, config.vision
    if vision.positions_per_side != POSITIONS_PER_SIDE:
        raise ConfigError(
            f"the tower has {vision.positions_per_side} positions a side, GGUF readers expect {POSITIONS_PER_SIDE}",
            hint="Only towers with image_size = 70 × patch_size can be exported.",
        )
    if text.linear_key_head_dim != text.linear_value_head_dim:
        raise ConfigError("GGUF readers expect linear-attention keys and values of one dimension")


def _part(progress: Progress | None, start: int, end: int) -> Progress | None:
    """A part of the work, as thousandths of all of it."""
    if progress is None:
        return None
    return lambda done, total: progress(start + (end - start) * done // max(total, 1), 1000)


def _writer(path: Path, architecture: str, name: str, dtype: GGUFType) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(int(gguf.LlamaFileType[kinds[dtype]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def _decoder_keys(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    text = config.text
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_rope_dimension_count(text.rotary_dim)
    writer.add_rope_dimension_sections(list(ROPE_SECTIONS))
    is_full = [kind == "full_attention" for kind in text.layer_types]
    interval = is_full.index(True) + 1 if any(is_full) else text.num_hidden_layers + 1
    if is_full != [(i + 1) % interval == 0 for i in range(text.num_hidden_layers)]:
        raise ConfigError("GGUF readers expect full attention in every n-th layer")
    writer.add_full_attention_interval(interval)
    writer.add_ssm_conv_kernel(text.linear_conv_kernel_dim)
    writer.add_ssm_state_size(text.linear_key_head_dim)
    writer.add_ssm_group_count(text.linear_num_key_heads)
    writer.add_ssm_time_step_rank(text.linear_num_value_heads)
    writer.add_ssm_inner_size(text.linear_value_head_dim * text.linear_num_value_heads)


def _vocabulary(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int], list[str]]:
    """(tokens, their kinds, merges) of a byte-level BPE `tokenizer.json`, `size` tokens in all."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [_UNUSED] * size
    try:
        vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
        for token, i in vocabulary.items():
            tokens[i], kinds[i] = token, _NORMAL
        for added in tokenizer.get("added_tokens", []):
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError("tokenizer.json is no byte-level BPE", hint="Copy it again.") from None
    except IndexError:
        raise CheckpointError(f"tokenizer.json has more tokens than the model's {size}") from None
    if TURN_END not in tokens:
        raise CheckpointError(f"tokenizer.json has no {TURN_END}", hint="Use the one that came with the weights.")
    return tokens, kinds, [m if isinstance(m, str) else " ".join(m) for m in merges]


def _token_keys(
    writer: gguf.GGUFWriter, template: str, config: ModelConfig, tokens: tuple[list[str], list[int], list[str]]
) -> None:
    names, kinds, merges = tokens
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    # Readers want at least one; of a vocabulary without merges this one makes no token, so the text is split as before.
    writer.add_token_merges(merges or ["Ġ Ġ"])
    # A turn ends at <|im_end|>, a document at the id of the config.
    writer.add_eos_token_id(names.index(TURN_END))
    writer.add_eot_token_id(names.index(TURN_END))
    writer.add_pad_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def _vision_keys(
    writer: gguf.GGUFWriter, config: ModelConfig, image: ImageConfig, downsample_mode: DownsampleMode
) -> None:
    vision = config.vision
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("minicpmv4_6")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(image.scale_resolution)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_projection_dim(config.text.hidden_size)
    writer.add_vision_image_mean(image.image_mean)
    writer.add_vision_image_std(image.image_std)
    writer.add_vision_projector_scale_factor(4 if downsample_mode == "16x" else 2)
    writer.add_vision_wa_layer_indexes([config.insert_layer_id])


def _kind(name: str, tensor: Tensor, dtype: GGUFType) -> gguf.GGMLQuantizationType:
    """Matrices of products in `dtype`; norms, biases, convolutions, positions in fp32."""
    kinds = gguf.GGMLQuantizationType
    if tensor.dim() != 2 or "conv1d" in name or "position_embd" in name:
        return kinds.F32
    if dtype == "q8_0" and tensor.shape[1] % 32:
        return kinds.F16
    return kinds[dtype.upper()]


def _write(
    writer: gguf.GGUFWriter, tensors: list[tuple[str, Tensor]], dtype: GGUFType, progress: Progress | None
) -> None:
    """Headers first, then one tensor after the other: no second copy of the model exists."""
    kinds = [_kind(name, tensor, dtype) for name, tensor in tensors]
    for (name, tensor), kind in zip(tensors, kinds, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = tuple(tensor.shape)
        writer.add_tensor_info(name, shape, torch.empty(0).numpy().dtype, tensor.numel() // block * size, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, data in enumerate(_arrays(tensors, kinds), 1):
            writer.write_tensor_data(data)
            if progress is not None:
                progress(done, len(tensors))
        assert writer.fout is not None
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _arrays(tensors: list[tuple[str, Tensor]], kinds: list[gguf.GGMLQuantizationType]) -> Iterator[Any]:
    for (_, tensor), kind in zip(tensors, kinds, strict=True):
        yield gguf.quantize(tensor.detach().float().contiguous().numpy(), kind)
