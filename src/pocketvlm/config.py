"""What a model is (shapes) and how its pictures are cut (image settings): frozen, to and from the published JSON.

`ModelConfig` mirrors `config.json`, `ImageConfig` the settings of pictures (`config_files` says which file of a
directory holds them). Run-time choices (device, dtype, sampling) live elsewhere: nothing here depends on how a model is
run. Source of the names: the published configuration of MiniCPM-V 4.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, Self

from pocketvlm import config_ranges
from pocketvlm.config_ranges import (
    check_colours,
    check_numbers,
    check_token,
    check_view,
    refuse_other_attention,
    refuse_quantized,
    tied,
)
from pocketvlm.errors import ConfigError
from pocketvlm.ranges import as_integer, show

# The rate of one view, and what a request may ask for: one rate for all views, or "auto", which gives each its own.
DownsampleMode = Literal["16x", "4x"]
DOWNSAMPLE_MODES: tuple[DownsampleMode, ...] = ("16x", "4x")
DownsampleOption = Literal["16x", "4x", "auto"]
DOWNSAMPLE_OPTIONS: tuple[DownsampleOption, ...] = (*DOWNSAMPLE_MODES, "auto")
# The most visual tokens of "auto", as a multiple of those that 16x takes for the same picture.
AUTO_TOKEN_BUDGET = 1.5

# Each side of a view is rounded to a multiple of patch_size times this. In 4x mode the rounding changed after the model
# was published (transformers <= 5.18 used 4, from 5.23 on it is 2), so the choice is explicit and has a name.
FourXRounding = Literal["current", "checkpoint"]
FOUR_X_ROUNDING: dict[str, int] = {"current": 2, "checkpoint": 4}

LayerType = Literal["linear_attention", "full_attention"]


def check_downsample_mode(mode: str) -> DownsampleOption:
    """Return `mode` if it is one of `DOWNSAMPLE_OPTIONS`; raise `ConfigError` otherwise."""
    for known in DOWNSAMPLE_OPTIONS:
        if isinstance(mode, str) and mode == known:
            return known
    raise ConfigError(f"downsample_mode={show(mode)} is unknown", hint=f"Use one of {', '.join(DOWNSAMPLE_OPTIONS)}.")


def check_auto_token_budget(value: float | None, is_auto: bool) -> float:
    """Return `value`, or the default when None; raise `ConfigError` if it is no budget, or given where nothing is auto.

    Args:
        value: the most visual tokens, as a multiple of those of 16x: from 1.0 (all 16x) to 4.0 (all may be 4x).
        is_auto: whether `downsample_mode="auto"` is in use.
    """
    if value is None:
        return AUTO_TOKEN_BUDGET
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 4:
        raise ConfigError(
            f"auto_token_budget={show(value)} is not a number from 1.0 to 4.0",
            hint="It is the most visual tokens, as a multiple of those that 16x takes.",
        )
    if not is_auto:
        raise ConfigError(f"auto_token_budget={value} needs downsample_mode='auto'", hint="Give both or neither.")
    return float(value)


DTYPES = ("float32", "bfloat16", "float16")
RUNTIMES = ("auto", "torch", "onnx")


def check_device_name(name: str) -> str:
    """Return `name` if it is "auto", "cpu", "cuda" or "cuda:N"; raise `ConfigError` otherwise."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", name):
        raise ConfigError(f"device={show(name)} is unknown", hint="Use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    return name


def check_dtype_name(name: str) -> str:
    """Return `name` if it is "auto" or one of `DTYPES`; raise `ConfigError` otherwise."""
    if not isinstance(name, str) or name not in ("auto", *DTYPES):
        raise ConfigError(f"dtype={show(name)} is unknown", hint=f"Use auto, {', '.join(DTYPES)}.")
    return name


def check_runtime_name(name: str) -> str:
    """Return `name` if it is one of `RUNTIMES`; raise `ConfigError` otherwise."""
    if not isinstance(name, str) or name not in RUNTIMES:
        raise ConfigError(f"runtime={show(name)} is unknown", hint=f"Use one of {', '.join(RUNTIMES)}.")
    return name


def _pick(cls: type, data: Any, where: str = "") -> dict[str, Any]:
    """The entries of `data` that are fields of the dataclass `cls`, each of the type of the field's default. Numbers
    are what they mean: some programs write 24.0 for a count, others 1 for a deviation.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {show(data)}, expected an object")
    picked = {}
    for f in fields(cls):
        value = data.get(f.name)
        if value is None or f.default is MISSING:
            continue
        kind: Any = type(f.default)
        if kind is float:
            kind = (int, float)  # `check_numbers` makes floats of them
        elif kind is int:
            value = as_integer(value)
        elif kind is tuple:
            kind, value = tuple, tuple(value) if isinstance(value, (list, tuple)) else value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            name = f"{where}.{f.name}".lstrip(".")
            raise ConfigError(f"{name} is {show(value)}, expected {type(f.default).__name__}")
        picked[f.name] = value
    return picked


def _pick_rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `rope_parameters`, or of `rope_scaling`, as older programs call it; they must not contradict."""
    picked: dict[str, Any] = {}
    for where in ("rope_parameters", "rope_scaling"):
        found = _pick(TextConfig, text.get(where) or {}, f"text_config.{where}")
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in found and picked.setdefault(name, found[name]) != found[name]:
                raise ConfigError(
                    f"{name} is {show(picked[name])} in rope_parameters and {show(found[name])} in rope_scaling",
                    hint="Leave the wrong one out.",
                )
    return picked


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (SigLIP2-400M at the published size)."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 980
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    def __post_init__(self) -> None:
        check_numbers(self, config_ranges.VISION, "vision_config")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"vision image_size {self.image_size} is not a multiple of patch_size {self.patch_size}: positions "
                "stand in a whole grid"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"vision hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads"
            )
        if self.hidden_act != "gelu_pytorch_tanh":
            raise ConfigError(f"vision hidden_act {self.hidden_act!r} is not supported; expected 'gelu_pytorch_tanh'")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def positions_per_side(self) -> int:
        """Side of the square position table, in buckets (70 at the published size)."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Values in one patch: patch_size * patch_size * num_channels."""
        return self.patch_size**2 * self.num_channels


@dataclass(frozen=True)
class TextConfig:
    """The hybrid decoder (Qwen3.5-0.8B text at the published size)."""

    hidden_size: int = 1024
    intermediate_size: int = 3584
    num_hidden_layers: int = 24
    layer_types: tuple[LayerType, ...] = (
        "linear_attention",
        "linear_attention",
        "linear_attention",
        "full_attention",
    ) * 6
    vocab_size: int = 248094
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = True
    # full attention
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 256
    rope_theta: float = 10_000_000.0
    partial_rotary_factor: float = 0.25
    attention_bias: bool = False
    attn_output_gate: bool = True
    # linear attention (gated delta net)
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 16
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_conv_kernel_dim: int = 4

    def __post_init__(self) -> None:
        check_numbers(self, config_ranges.TEXT, "text_config")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        unknown = sorted({str(kind) for kind in self.layer_types} - {"linear_attention", "full_attention"})
        if unknown:
            raise ConfigError(f"layer types {unknown} are not supported; expected linear_attention or full_attention")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} query heads are no multiple of {self.num_key_value_heads} KV heads"
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ConfigError(
                f"{self.linear_num_value_heads} linear value heads are no multiple of "
                f"{self.linear_num_key_heads} key heads"
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                f"partial_rotary_factor {self.partial_rotary_factor} rotates {self.rotary_dim} of {self.head_dim} "
                "dimensions, expected an even number of at least 2: they turn in pairs"
            )
        if self.hidden_act != "silu":
            raise ConfigError(f"text hidden_act {self.hidden_act!r} is not supported; expected 'silu'")
        if self.attention_bias:
            raise ConfigError("text_config.attention_bias is true, which is not supported; expected false")
        if not self.attn_output_gate:
            raise ConfigError("text_config.attn_output_gate is false, which is not supported; expected true")

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of a query or key head that rotate (64 of 256 at the published size)."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def linear_key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def linear_value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def linear_conv_dim(self) -> int:
        """Channels of the causal convolution: queries, keys and values side by side."""
        return 2 * self.linear_key_dim + self.linear_value_dim


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: tower, early compression, merger, decoder and the ids that tie them to the tokenizer."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    insert_layer_id: int = 6
    image_token_id: int = 248056
    video_token_id: int = 248057
    eos_token_id: int = 248044
    downsample_mode: DownsampleOption = "16x"

    def __post_init__(self) -> None:
        check_downsample_mode(self.downsample_mode)
        check_numbers(self, config_ranges.MODEL)
        if not 0 <= self.insert_layer_id < self.vision.num_hidden_layers:
            raise ConfigError(
                f"insert_layer_id {self.insert_layer_id} is outside the tower's {self.vision.num_hidden_layers} layers"
            )
        for name in ("image_token_id", "video_token_id", "eos_token_id"):
            check_token(name, getattr(self, name), self.text.vocab_size)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the content of a published `config.json`; `ConfigError` names what does not fit."""
        if data.get("model_type") != "minicpmv4_6":
            raise ConfigError(
                f"model_type is {data.get('model_type')!r}, expected 'minicpmv4_6'",
                hint="Point at a MiniCPM-V 4.6 checkpoint directory.",
            )
        if data.get("drop_vision_last_layer"):
            raise ConfigError("drop_vision_last_layer=true is not supported")
        if data.get("merge_kernel_size", (2, 2)) not in ((2, 2), [2, 2]) or data.get("merger_times", 1) != 1:
            raise ConfigError("only merge_kernel_size (2, 2) with merger_times 1 is supported")
        for name in ("text_config", "vision_config"):
            if not isinstance(data.get(name), Mapping):
                raise ConfigError(f"config.json has no object {name!r}")
        for where, part in (("", data), *((f"{name}.", data[name]) for name in ("text_config", "vision_config"))):
            refuse_quantized(part)
            refuse_other_attention(part, where)
        text_data = {**data["text_config"], "tie_word_embeddings": tied(data, data["text_config"])}
        if "layer_types" not in text_data:
            interval = as_integer(text_data.get("full_attention_interval", 4))
            layers = as_integer(text_data.get("num_hidden_layers"))
            layers = config_ranges.TEXT["num_hidden_layers"].check("text_config.num_hidden_layers", layers)
            if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
                raise ConfigError("text_config has neither layer_types nor a usable full_attention_interval")
            kinds = ("linear_attention", "full_attention")
            text_data["layer_types"] = tuple(kinds[(i + 1) % interval == 0] for i in range(layers))
        picked = _pick(TextConfig, text_data, "text_config") | _pick_rope(text_data)
        vision = VisionConfig(**_pick(VisionConfig, data["vision_config"], "vision_config"))
        config = cls(vision=vision, text=TextConfig(**picked), **_pick(cls, data))
        for part in (data, data["text_config"]):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # -1 means none
                check_token(name, part.get(name), config.text.vocab_size)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` in the published layout."""
        text = asdict(self.text)
        rope = {k: text.pop(k) for k in ("partial_rotary_factor", "rope_theta")} | {"rope_type": "default"}
        text |= {"layer_types": list(self.text.layer_types), "rope_parameters": rope, "model_type": "qwen3_5_text"}
        text |= {"attention_dropout": 0.0, "mamba_ssm_dtype": "float32"}
        if "full_attention" in self.text.layer_types:
            text["full_attention_interval"] = self.text.layer_types.index("full_attention") + 1
        vision = asdict(self.vision) | {"attention_dropout": 0.0, "model_type": "minicpmv4_6_vision"}
        own = {k: v for k, v in asdict(self).items() if k not in ("vision", "text")}
        return {
            "architectures": ["MiniCPMV4_6ForConditionalGeneration"],
            "model_type": "minicpmv4_6",
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "vision_config": vision,
            "text_config": text,
            **own,
        }


@dataclass(frozen=True)
class ImageConfig:
    """How pictures and videos become views."""

    max_slice_nums: int = 9
    scale_resolution: int = 448
    patch_size: int = 14
    slice_mode: bool = True
    use_image_id: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    four_x_rounding: FourXRounding = "current"
    max_num_frames: int = 128
    stack_frames: int = 1

    def __post_init__(self) -> None:
        check_numbers(self, config_ranges.IMAGE)
        check_view(self.scale_resolution, self.patch_size)
        check_colours(self)
        if self.four_x_rounding not in FOUR_X_ROUNDING:
            raise ConfigError(
                f"four_x_rounding={self.four_x_rounding!r} is unknown", hint=f"Use one of {', '.join(FOUR_X_ROUNDING)}."
            )

    def rounding_factor(self, mode: DownsampleOption) -> int:
        """Each side of a view is a multiple of this many patches; with "auto" of what suits both rates."""
        return FOUR_X_ROUNDING[self.four_x_rounding] if mode == "4x" else 4

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the content of a published `preprocessor_config.json`; unknown keys are left alone."""
        return cls(**_pick(cls, data))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` in the published layout."""
        return {
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "processor_class": "MiniCPMV4_6Processor",
            **asdict(self),
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
