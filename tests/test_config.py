"""Configurations: the published JSON there and back, and one line for everything that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from pocketvlm.config import ImageConfig, ModelConfig, TextConfig
from pocketvlm.errors import ConfigError


def changed(**changes: Any) -> dict[str, Any]:
    """The published configuration with `a__b=value` set at a.b."""
    data = ModelConfig().to_dict()
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    return data


def test_there_and_back_is_the_same() -> None:
    assert ModelConfig.from_dict(ModelConfig().to_dict()) == ModelConfig()
    assert ImageConfig.from_dict(ImageConfig().to_dict()) == ImageConfig()
    data = ModelConfig().to_dict()
    assert data["text_config"]["full_attention_interval"] == 4
    assert "dtype" not in data


def test_layer_types_follow_from_the_interval_when_they_are_missing() -> None:
    data = changed()
    del data["text_config"]["layer_types"]
    assert ModelConfig.from_dict(data).text.layer_types == TextConfig().layer_types


def test_positions_that_an_older_program_wrote_are_read() -> None:
    data = changed(text_config__rope_scaling={"type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5})
    del data["text_config"]["rope_parameters"]
    text = ModelConfig.from_dict(data).text
    assert (text.rope_theta, text.partial_rotary_factor) == (5e5, 0.5)
    data["text_config"] |= {"rope_scaling": None, "rope_parameters": {"rope_type": None}, "rope_theta": 2e5}
    assert ModelConfig.from_dict(data).text.rope_theta == 2e5
    silent = {"sliding_window": 4096, "use_sliding_window": False, "mlp_only_layers": [], "rope_scaling": {}}
    assert ModelConfig.from_dict(changed(**{f"text_config__{k}": v for k, v in silent.items()})) == ModelConfig()


@pytest.mark.parametrize("value", [True, False])
def test_whether_the_head_is_tied_may_stand_in_either_place(value: bool) -> None:
    for outer, inner in ((value, None), (None, value), (value, value)):
        data = changed(tie_word_embeddings=outer, text_config__tie_word_embeddings=inner)
        assert ModelConfig.from_dict(data).text.tie_word_embeddings is value
    assert ModelConfig.from_dict(changed(tie_word_embeddings=None, text_config__tie_word_embeddings=None)).text == (
        TextConfig()
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text_config": "text"}, "text_config"),
        ({"vision_config": [1]}, "vision_config"),
        ({"insert_layer_id": "six"}, "insert_layer_id"),
        ({"insert_layer_id": 99}, "insert_layer_id"),
        ({"text_config__hidden_size": "big"}, "text_config.hidden_size"),
        ({"text_config__hidden_size": True}, "text_config.hidden_size"),
        ({"text_config__rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"text_config__layer_types": ["linear_attention"]}, "layer_types"),
        ({"text_config__layer_types": "linear"}, "layer_types"),
        ({"text_config__rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"text_config__rope_parameters": [1]}, "rope_parameters"),
        ({"text_config__num_key_value_heads": 3}, "KV heads"),
        ({"text_config__attention_bias": True}, "attention_bias is true"),
        ({"text_config__attn_output_gate": False}, "config.attn_output_gate is false"),
        ({"vision_config__num_channels": 1}, "vision_config.num_channels=1 is not possible: it must be 3"),
        ({"text_config__rope_parameters": {"type": "linear"}}, "text_config.rope_parameters: type 'linear'"),
        ({"text_config__rope_scaling": {"rope_type": "yarn"}}, "text_config.rope_scaling: rope_type 'yarn'"),
        ({"text_config__rope_scaling": {"type": "dynamic", "factor": 2}}, "text_config.rope_scaling: type 'dynamic'"),
        ({"text_config__rope_scaling": {"rope_type": "default", "type": "linear"}}, "type 'linear'"),
        ({"text_config__rope_scaling": {"type": "default", "rope_theta": 5e5}}, "500000"),
        ({"text_config__rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.25"),
        ({"text_config__rope_scaling": "yarn"}, "text_config.rope_scaling is 'yarn', expected an object"),
        ({"text_config__rope_parameters": []}, "rope_parameters is [], expected an object"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: type 'yarn'"),
        ({"text_config__sliding_window": 4096}, "text_config.sliding_window is 4096"),
        ({"text_config__sliding_window": 0}, "text_config.sliding_window is 0"),
        ({"text_config__sliding_window": 64, "text_config__use_sliding_window": True}, "sliding_window is 64"),
        ({"text_config__mlp_only_layers": [0]}, "text_config.mlp_only_layers is [0]"),
        ({"text_config__tie_word_embeddings": "true"}, "text_config.tie_word_embeddings is 'true', expected true or"),
        ({"text_config__tie_word_embeddings": 0}, "text_config.tie_word_embeddings is 0, expected true or"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected true or"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, but text_config.tie_word_embeddings is True"),
        ({"vision_config__num_attention_heads": 7}, "heads"),
        ({"vision_config__hidden_act": "relu"}, "relu"),
        ({"model_type": "llama"}, "llama"),
        ({"drop_vision_last_layer": True}, "drop_vision_last_layer"),
        ({"merger_times": 2}, "merger_times"),
        ({"merge_kernel_size": None}, "merge_kernel_size"),
        ({"downsample_mode": "8x"}, "8x"),
        ({"text_config__layer_types": [["linear_attention"]] * 24}, "layer types"),
        ({"text_config__num_key_value_heads": 0}, "num_key_value_heads"),
        ({"vision_config__num_attention_heads": 0}, "num_attention_heads"),
        ({"vision_config__image_size": 13}, "image_size 13 is not a multiple of patch_size 14"),
        ({"vision_config__image_size": 981}, "image_size 981 is not a multiple of patch_size 14"),
        ({"vision_config__patch_size": 16}, "image_size 980 is not a multiple of patch_size 16"),
        ({"text_config__vocab_size": 248_056}, "image_token_id is 248056, the vocabulary ends at 248055"),
        ({"video_token_id": 248_094}, "video_token_id is 248094, the vocabulary ends at 248093"),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ({"bos_token_id": 248_094}, "bos_token_id is 248094"),
        ({"bos_token_id": "start"}, "bos_token_id"),
        ({"pad_token_id": [0, 248_094]}, "pad_token_id is 248094"),
        ({"text_config__eos_token_id": 248_320}, "eos_token_id is 248320"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config ('gptq')"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config ('of no name')"),
        ({"text_config__quantization_config": {"quant_method": "fp8"}}, "quantization_config ('fp8')"),
        ({"vision_config__quantization_config": {"quant_method": "awq"}}, "quantization_config ('awq')"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config ('compressed-tensors"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(changed(**changes))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": None},
        {"quantization_config": {}},
        {"bos_token_id": None, "pad_token_id": None},
        {"bos_token_id": 248_045, "text_config__eos_token_id": [248_044, 248_046], "pad_token_id": -1},
    ],
    ids=str,
)
def test_what_says_nothing_or_fits_passes(changes: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(changed(**changes)) == ModelConfig()


@pytest.mark.parametrize(
    "data", [{"max_slice_nums": 0}, {"patch_size": "14"}, {"image_mean": 0.5}, {"four_x_rounding": "new"}]
)
def test_image_settings_that_do_not_fit_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(data))):
        ImageConfig.from_dict(data)


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5, "0.5"), (0.5,) * 4])
def test_means_are_three_numbers(values: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="image_mean"):
        ImageConfig(image_mean=values)
