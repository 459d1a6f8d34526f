"""Every number of a model's configuration and of an engine's with its range: what lies outside would fail later.

One table for each kind of configuration, checked wherever a configuration is made, so no value comes in another way.
The upper bounds are far above anything published; they are there for files that are damaged or meant to harm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.ranges import Range, as_integer, show

_WIDTH, _HEADS, _LAYERS = Range(int, 1, 2**17), Range(int, 1, 1024), Range(int, 1, 512)
_TOKEN = Range(int, 0, 2**24)
_PATCH = Range(int, 1, 256)
# A variance is a mean of squares of fp32 numbers: an addend above 1 would drown it, one below would not be seen.
_EPSILON = Range(float, 1e-12, 1.0)

VISION: Mapping[str, Range] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_channels": Range(int, 3, 3),  # patches are cut from RGB pixels
    "image_size": Range(int, 1, 2**16),
    "patch_size": _PATCH,
    "layer_norm_eps": _EPSILON,
}
TEXT: Mapping[str, Range] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "vocab_size": Range(int, 1, 2**24),
    # The published template turns a message of one word into 13 tokens, and an answer needs one more.
    "max_position_embeddings": Range(int, 16, 2**30),
    "rms_norm_eps": _EPSILON,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "head_dim": Range(int, 1, 2**12),
    "rope_theta": Range(float, 1.0, 1e12),
    "partial_rotary_factor": Range(float, 0.0, 1.0, is_open=True),
    "linear_num_key_heads": _HEADS,
    "linear_num_value_heads": _HEADS,
    "linear_key_head_dim": Range(int, 1, 2**12),
    "linear_value_head_dim": Range(int, 1, 2**12),
    "linear_conv_kernel_dim": Range(int, 2, 64),
}
MODEL: Mapping[str, Range] = {
    "insert_layer_id": Range(int, 0, 511),
    "image_token_id": _TOKEN,
    "video_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
}
# Patches of one view, so that none makes the tower choke: a regular one has about 1,024.
MAX_VIEW_PATCHES = 12_288
# Of pictures and videos alike.
IMAGE: Mapping[str, Range] = {
    "max_slice_nums": Range(int, 1, 2**31 - 1),
    "scale_resolution": Range(int, 1, 2**14),
    "patch_size": _PATCH,
    "max_num_frames": Range(int, 1, 2**31 - 1),
    "stack_frames": Range(int, 1, 64),
}
# Options of `EngineConfig` that are numbers or flags. `Sizes` cuts budgets that a machine does not have.
ENGINE: Mapping[str, Range] = {
    "max_num_seqs": Range(int, 1, nullable=True),
    "max_num_batched_tokens": Range(int, 1, nullable=True),
    "cache_memory": Range(int, 1, nullable=True),
    "prefix_cache_memory": Range(int, 0, nullable=True),
    "encoder_cache_memory": Range(int, 0, nullable=True),
    "max_waiting": Range(int, 1),
    "enforce_eager": Range(bool),
}
# Three numbers each, one for each colour.
COLOURS: Mapping[str, Range] = {
    "image_mean": Range(float, -100.0, 100.0),
    "image_std": Range(float, 1e-3, 100.0),
}


def check_numbers(config: object, table: Mapping[str, Range], where: str = "") -> None:
    """Raise `ConfigError` for the first attribute of a frozen `config` that is outside of its range, named as
    `where`.name; leave numbers of the range's kind in their place.
    """
    for name, allowed in table.items():
        number = allowed.check(f"{where}.{name}".lstrip("."), getattr(config, name))
        object.__setattr__(config, name, number)


def check_colours(config: object) -> None:
    """Raise `ConfigError` unless means and deviations are three numbers each, within their range; leave floats."""
    for name, allowed in COLOURS.items():
        values = getattr(config, name)
        if not isinstance(values, tuple) or len(values) != 3:
            raise ConfigError(f"{name} is {show(values)}, expected three numbers")
        object.__setattr__(config, name, tuple(allowed.check(name, value) for value in values))


def check_view(scale_resolution: int, patch_size: int) -> None:
    """Raise `ConfigError` where a square view, each side a multiple of four patches, has more patches than one may."""
    side = math.isqrt(MAX_VIEW_PATCHES) // 4 * 4 * patch_size
    Range(int, 1, side).check(f"with patch_size={patch_size}, scale_resolution", scale_resolution)


def check_token(name: str, value: Any, vocab_size: int) -> None:
    """Raise `ConfigError` for an id (or one of a list) that the model has no embedding of; None is no id."""
    for token in value if isinstance(value, (list, tuple)) else (value,):
        if token is not None and Range(int, -1).check(name, as_integer(token)) >= vocab_size:
            raise ConfigError(
                f"{name} is {show(token)}, the vocabulary ends at {vocab_size - 1}",
                hint="Use the config.json that came with the weights.",
            )


def refuse_quantized(data: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where the weights are said to be packed in fewer bits by another program."""
    for name in ("quantization_config", "compression_config"):
        if found := data.get(name):
            kind = show(found.get("quant_method", "of no name"), 20) if isinstance(found, Mapping) else show(found)
            raise ConfigError(
                f"config.json has a {name} ({kind}): the weights are packed for another program, expected plain ones",
                hint="Use the checkpoint that they were made from; runtime='onnx' has quantization='int8' and 'int4'.",
            )


def refuse_other_attention(data: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` where a part of a configuration asks for layers or positions that would not be computed.

    Null asks for nothing, nor does a window that is switched off beside it. Older programs write `rope_scaling`, with
    its type under "type"; both names and places are looked at.
    """
    for name in ("rope_parameters", "rope_scaling"):
        rope = data.get(name)
        if rope is not None and not isinstance(rope, Mapping):
            raise ConfigError(f"{where}{name} is {show(rope)}, expected an object")
        for key in ("rope_type", "type"):
            if rope and rope.get(key) not in (None, "default"):
                raise ConfigError(f"{where}{name}: {key} {show(rope[key])} is not supported; expected 'default'")
    has_window = data.get("sliding_window") is not None and data.get("use_sliding_window") is not False
    for name, is_asked in (("sliding_window", has_window), ("mlp_only_layers", bool(data.get("mlp_only_layers")))):
        if is_asked:
            raise ConfigError(f"{where}{name} is {show(data[name])}, which is not supported", hint="Expected is null.")


def tied(data: Mapping[str, Any], text: Mapping[str, Any]) -> bool | None:
    """`tie_word_embeddings` of a whole configuration and of its text, which may stand in either; None in neither.

    Raises:
        ConfigError: it is neither true nor false, or one of each.
    """
    found = {}
    for where, part in (("", data), ("text_config.", text)):
        value = part.get("tie_word_embeddings")
        if not (value is None or isinstance(value, bool)):
            raise ConfigError(f"{where}tie_word_embeddings is {show(value)}, expected true or false")
        if value is not None:
            found[where] = value
    if len(set(found.values())) > 1:
        raise ConfigError(
            f"tie_word_embeddings is {found['']}, but text_config.tie_word_embeddings is {found['text_config.']}",
            hint="Give both the value that the weights were made with: false where they hold an lm_head of its own.",
        )
    return next(iter(found.values()), None)
