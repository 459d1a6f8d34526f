"""Checkpoint directories for tests: the published layout and control tokens at toy size, nothing downloaded.

`write_checkpoint(path)` writes what the processor reads (tokenizer, template, configurations); with `seed` also random
weights, saved by the reference implementation itself. `write_true_size_checkpoint(path)` writes the published shapes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pocketvlm.config import ImageConfig, ModelConfig, TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

# The 50 control tokens of the published vocabulary, in id order. A dot marks those that are added but not "special".
_CONTROL_TOKENS = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
.<tool_call> .</tool_call> .<|fim_prefix|> .<|fim_middle|> .<|fim_suffix|> .<|fim_pad|> .<|repo_name|> .<|file_sep|>
.<tool_response> .</tool_response> .<think> .</think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos>
<tts_text_eod> <tts_text_bos_single> <|audio_pad|> <unk> <image> </image> <ref> </ref> <box> </box> <quad> </quad>
<point> </point> <slice> </slice> <image_id> </image_id> <timestamp> </timestamp>
"""
NAMES = [token.removeprefix(".") for token in _CONTROL_TOKENS.split()]

# A few merges, so that pieces cut in the wrong place get other ids. "Ġ" is the byte alphabet's space, "Ċ" its newline.
_MERGES = """
i+n t+h th+e Ġ+the a+n an+d Ġ+and Ġ+t Ġ+a e+r o+n i+s Ġ+is u+s us+er m+a ma+g mag+e i+mage s+l sl+ic slic+e i+c
Ċ+Ċ Ã+© Ġ+Ġ <+| |+> </+i <+/ p+a pa+d ĊĊ+Ċ s+y sy+s sys+t syst+e syste+m _+p
"""
MERGES = [tuple(pair.split("+")) for pair in _MERGES.split()]
_WORDS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer(*, merges: bool = True, first_control_id: int = 0) -> tokenizers.Tokenizer:
    """256 bytes, the words `MERGES` makes (unless switched off), then the published control tokens; with a
    `first_control_id`, words that nobody writes up to there."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    used = []
    for left, right in MERGES if merges else ():
        if left in vocabulary and right in vocabulary:
            vocabulary.setdefault(left + right, len(vocabulary))
            used.append((left, right))
    vocabulary |= {f"\0{index}": index for index in range(len(vocabulary), first_control_id)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=used))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            tokenizers.AddedToken(token.removeprefix("."), special=not token.startswith("."), normalized=False)
            for token in _CONTROL_TOKENS.split()
        ]
    )
    return backend


def tiny_config(first_control_id: int = 256) -> ModelConfig:
    """Every kind of layer at toy width; the control tokens start at `first_control_id`."""
    return ModelConfig(
        vision=VisionConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=4),
        text=TextConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            layer_types=("linear_attention", "linear_attention", "linear_attention", "full_attention"),
            vocab_size=first_control_id + len(NAMES),
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
        ),
        insert_layer_id=1,
        image_token_id=first_control_id + NAMES.index("<|image_pad|>"),
        video_token_id=first_control_id + NAMES.index("<|video_pad|>"),
        eos_token_id=first_control_id + NAMES.index("<|endoftext|>"),
    )


def chat_template() -> str:
    """The published template, as the package carries it."""
    return resources.files("pocketvlm").joinpath("assets/nano/chat_template.jinja").read_text(encoding="utf-8")


def write_checkpoint(path: Path, *, merges: bool = True, seed: int | None = None, **text: Any) -> Path:
    """Write a checkpoint directory; `seed` adds random fp32 weights, `text` changes the decoder. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    backend = build_tokenizer(merges=merges)
    config = tiny_config(backend.token_to_id(NAMES[0]))
    config = replace(config, text=replace(config.text, **text))
    if seed is not None:
        _write_weights(path, config, seed)
    _write_processor(path, backend, config)
    return path


def _write_processor(path: Path, backend: tokenizers.Tokenizer, config: ModelConfig) -> None:
    """Everything but weights."""
    first = backend.token_to_id(NAMES[0])
    backend.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
    roles = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        **{f"{name}_start_token": f"<{name}>" for name in ("image", "slice", "image_id")},
        **{f"{name}_end_token": f"</{name}>" for name in ("image", "slice", "image_id")},
    }
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    _write_json(path / "config.json", config.to_dict())
    _write_json(path / "preprocessor_config.json", ImageConfig().to_dict())
    _write_json(path / "generation_config.json", {"bos_token_id": first + 1, "eos_token_id": [first, first + 2]})
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "MiniCPMV4_6Processor",
            "extra_special_tokens": roles,
            **named,
        },
    )


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_true_size_checkpoint(path: Path, seed: int = 0) -> Path:
    """Write random bfloat16 weights of the published shapes (2.6 GB), and a tokenizer of bytes with the control tokens
    at their published ids. Returns `path`."""
    import torch

    path.mkdir(parents=True, exist_ok=True)
    config = ModelConfig()
    _write_weights(path, config, seed, torch.bfloat16)
    first = config.image_token_id - NAMES.index("<|image_pad|>")
    _write_processor(path, build_tokenizer(merges=False, first_control_id=first), config)
    return path


def _write_weights(path: Path, config: ModelConfig, seed: int, dtype: torch.dtype | None = None) -> None:
    """Random weights, large enough that every layer matters, saved by the reference's own class."""
    import torch
    from parity import reference

    classes = reference.transformers
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        with torch.device("meta"):
            model = classes.MiniCPMV4_6ForConditionalGeneration(classes.MiniCPMV4_6Config(**config.to_dict()))
        model = model.to(dtype or torch.float32).to_empty(device="cpu")
        model.tie_weights()
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                # Decays that a few tokens outlive. Where all is forgotten at once, an output is one product that may be
                # near zero, the norm behind it blows up its last digits, and no two fp32 sums agree to 1e-4.
                parameter.uniform_(0.05, 2).log_()
            elif parameter.ndim == 1:  # norms and biases: about where a model starts
                parameter.normal_(_start(model, name), 0.1)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        model.save_pretrained(path)


def _start(model: torch.nn.Module, name: str) -> float:
    """Where a vector starts: one for plain norms and time steps, zero for biases and the zero-centred norms."""
    from torch import nn

    owner, _, leaf = name.rpartition(".")
    plain_norm = isinstance(model.get_submodule(owner), nn.LayerNorm) or name.endswith("linear_attn.norm.weight")
    return 1.0 if leaf == "dt_bias" or (leaf == "weight" and plain_norm) else 0.0
