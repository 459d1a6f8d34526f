"""ms-swift's settings (`swift sft FILE.yaml`, `swift rlhf FILE.yaml`, and the `args.json` of a run) ↔ a run here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.errors import ConfigError
from pocketvlm.text_files import read_text
from pocketvlm.training.interchange import schedule
from pocketvlm.training.interchange.job import Job, Sets, check_place
from pocketvlm.training.interchange.keys import Keys
from pocketvlm.training.interchange.targets import (
    COMPRESSION,
    DECODER,
    MERGER,
    PREFIXES,
    TOWER,
    in_order,
    layers,
    parts_of,
)
from pocketvlm.training.settings import TuneSettings

NAME = "minicpmv4_6"  # of the kind of model and of its template
_RATES = {"full": 1e-5}
_HARMLESS = (
    f"{schedule.HARMLESS} model_type template use_hf torch_dtype attn_impl experts_impl add_version check_model "
    "create_checkpoint_symlink model_author model_name load_from_cache_file dataset_num_proc load_args load_data_args "
    "vit_gradient_checkpointing lazy_tokenize max_new_tokens temperature tuner_backend hub_token model_revision "
    "device_map max_memory padding_side padding_free sequence_parallel_size max_shard_size safe_serialization "
    "swanlab_* acc_strategy use_logits_to_keep download_mode dataset_shuffle val_dataset_shuffle streaming "
    "shuffle_buffer_size stopping_strategy split_dataset_ratio_seed remove_unused_columns agent_template norm_bbox "
    "enable_thinking preserve_thinking response_prefix is_binary_loss_scale template_backend ds3_gather_for_generation "
    "use_flash_ckpt zero_hpz_partition_size deepspeed_autotp_size use_ray device_groups ray_exp_name ignore_args_error "
    "enable_npu_model_patch lora_dtype galore_* lisa_step_interval fourier_* boft_* vera_* adapter_act adapter_length "
    "adalora_* llamapro_* reft_* lora_ga_* bnb_4bit_* top_k top_p repetition_penalty num_beams stream stop_words "
    "logprobs top_logprobs packing_* cached_val_dataset max_model_len ddp_backend global_world_size rank world_size "
    "local_world_size model_suffix model_info model_meta model_dir hub task_type metric_warmup_step early_stop_* "
    "extra_eval_args vllm_* sglang_* lmdeploy_* max_completion_length sft_alpha lmbda seq_kd desirable_weight "
    "undesirable_weight simpo_gamma cpo_alpha discopop_tau teacher_* reward_* generation_batch_size num_generations "
    "ckpt_dir trainer_* version swift_version template_meta training_args _val_dataset_exists"
)
# Of PPO, GRPO and distillation; `args.json` of a DPO run has them all.
_OF_OTHER_METHODS = (
    "num_ppo_epochs whiten_rewards kl_coef cliprange* vf_coef gamma lam num_mini_batches local_rollout_* "
    "num_sample_generations response_length min_p use_vllm enable_flattened_weight_sync async_generate sleep_level "
    "offload_* epsilon epsilon_* delta cosine_m* repetition_n_grams repetition_max_penalty chord_* ref_model_* "
    "completion_length_limit_scope dynamic_sample max_resample_times overlong_filter top_entropy_quantile "
    "importance_sampling_level tau_pos tau_neg advantage_estimator rlsd_* sdar_* real_tau fipo_* "
    "rollout_importance_sampling_* num_iterations _teacher_*"
)
_OFF = (
    f"{schedule.OFF} "
    "sync_ref_model adapters ref_adapters ref_model cached_dataset custom_dataset_info external_plugins "
    "new_special_tokens rope_scaling train_type_extra modules_to_save target_parameters packing lorap_lr_ratio "
    "use_galore lisa_activated_layers vit_lr aligner_lr optimizer loss_type loss_weights rpo_alpha ld_alpha "
    "label_smoothing enable_dft_loss enable_channel_loss router_aux_loss_coef mrl_dims interleave_prob columns "
    "disable_auto_column_mapping max_pixels callbacks freeze_parameters_ratio freeze_parameters_regex max_epochs "
    "trainable_parameters_regex resume_only_model init_strategy num_labels problem_type "
    "disable_ignore_empty_think eval_use_evalscope hqq_axis use_swift_lora decision_*_instructions "
    "decision_*_options decision_state_as_text decision_shuffle_fields"
)
_FIXED = {
    **schedule.FIXED,
    "lora_bias": "none",
    "init_weights": True,
    "use_chat_template": True,
    "train_dataloader_shuffle": True,
    "add_non_thinking_prefix": True,
}
# Variables of the environment that the template reads, and our options of pictures.
_OPTIONS = {"DOWNSAMPLE_MODE": "downsample_mode", "MAX_SLICE_NUMS": "max_slice_nums"}
_OPTIONS |= {"MAX_NUM_FRAMES": "max_num_frames", "STACK_FRAMES": "stack_frames"}
# What it takes where the environment is silent, whatever the checkpoint says.
_OPTION_DEFAULTS = {"DOWNSAMPLE_MODE": "16x", "MAX_SLICE_NUMS": 9, "MAX_NUM_FRAMES": 128, "STACK_FRAMES": 1}


def read(values: Mapping[str, Any], name: str, config: ModelConfig) -> Job:
    """What a file says.

    Args:
        values: content of the file.
        name: of the file, for messages.

    Raises:
        ConfigError: a key would change what is learnt and cannot be honoured, or is unknown.
    """
    keys = Keys({key: value for key, value in values.items() if key != "ENV"}, name)
    environment = _mapping(keys, "ENV", values.get("ENV"))
    environment |= _mapping(keys, "model_kwargs", keys.left.pop("model_kwargs", None))
    method = keys.one_of("train_type" if "train_type" in keys.left else "tuner_type", ["lora", "full"], "lora")
    defaults = schedule.Defaults(1, 16, 0.1, _RATES.get(method, 1e-4), "cosine", True, 0.95)
    found, notes = schedule.read_schedule(keys, defaults, schedule.processes_of(environment))
    found["objective"] = "sft"
    if "rlhf_type" in keys.left:
        found["objective"] = keys.one_of("rlhf_type", ["dpo"], "dpo")
        losses = keys.words("loss_type")
        if losses not in ((), ("sigmoid",)):
            keys.refuse("loss_type", losses, "and here it can be sigmoid only, with dpo")
        found |= {"beta": keys.number("beta", 0.1), "rpo_alpha": keys.number("rpo_alpha", 0.0)}
        if found["rpo_alpha"] and str(values.get("per_device_train_batch_size", 1)) != "1":
            notes.append(f"{name}: rpo_alpha weighs the preferred tokens of a device's batch alike there, pairs here")
    _loss_scale(keys, found["objective"])
    if (bits := keys.whole("quant_bits")) is not None:
        if bits != 4 or method == "full" or keys.one_of("quant_method", ["bnb"], "none") != "bnb":
            keys.refuse("quant_bits", bits, "and here it can be 4 only, with quant_method bnb and tuner_type lora")
        for key, only in (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_use_double_quant", "true")):
            keys.one_of(key, [only], only)
        method = "qlora"
    keys.left.pop("quant_method", None)
    found |= {"method": method, "tune": _parts(keys, config, method)}
    adapters = {
        "rank": keys.whole("lora_rank", 8),
        "alpha": keys.number("lora_alpha", 32.0),
        "dropout": keys.number("lora_dropout", 0.05),
        "dora": keys.flag("use_dora"),
        "rslora": keys.flag("use_rslora"),
    }
    found |= adapters if method != "full" else {}
    found["max_tokens"] = keys.whole("max_length")
    found["truncate"] = keys.one_of("truncation_strategy", ["delete", "right"], "delete") == "right"
    found["bad_samples"] = "stop" if keys.flag("strict") else "skip"
    system = _system(keys)
    data, validation = (tuple(_sets(keys, one, system) for one in _listed(keys, key)) for key in _SETS)
    share = keys.number("split_dataset_ratio", 0.0)
    model, workers = keys.text("model"), keys.whole("dataloader_num_workers", 0) or 0
    options = _options(keys, environment, notes)
    notes += keys.close(f"{_HARMLESS} {_OF_OTHER_METHODS}" if found["objective"] == "dpo" else _HARMLESS, _OFF, _FIXED)
    return Job(found, model, data, validation, share or None, workers, options, tuple(notes))


_SETS = ("dataset", "val_dataset")


def _mapping(keys: Keys, key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            keys.refuse(key, value, "expected an object of JSON")
    if not isinstance(value, Mapping | None):
        keys.refuse(key, value, "expected names and values")
    return {str(name).upper(): one for name, one in (value or {}).items()}


def _loss_scale(keys: Keys, objective: str) -> None:
    """The loss is on all answers; on the last one where two answers are compared, which is the same."""
    given = keys.text("loss_scale", "default") or "default"
    allowed = {"default", "ignore_empty_think"} | ({"last_round"} if objective == "dpo" else set())
    if not set(given.split("+")) <= allowed:
        keys.refuse("loss_scale", given, "and here all answers weigh the same", "Take the key out.")


def _system(keys: Keys) -> str:
    r"""The system message, or the file of its text; `\n` in it stands for the end of a line, as on a command line."""
    text = keys.text("system") or ""
    if not text.endswith(".txt"):
        return text.replace("\\n", "\n")
    try:
        return read_text(Path(text)).replace("\r\n", "\n")
    except (OSError, ValueError):  # there is none of that name, or the text is none
        keys.refuse("system", text, "and the file of that name cannot be read", "Check the path.")


def _parts(keys: Keys, config: ModelConfig, method: str) -> tuple[str, ...]:
    """What learns, by the flags that freeze parts and the layers that adapters are for."""
    frozen = {
        DECODER: keys.flag("freeze_llm"),
        TOWER: keys.flag("freeze_vit", True),
        MERGER: keys.flag("freeze_aligner", True),
    }
    every = layers(config)
    free = {n: part for n, part in every.items() if not any(n.startswith(f"{p}.") and f for p, f in frozen.items())}
    targets, pattern = keys.words("target_modules"), keys.text("target_regex")
    closing, opening = keys.words("freeze_parameters"), keys.words("trainable_parameters")
    parts: tuple[str, ...] | None
    if method == "full":
        chosen = [n for n in every if n.startswith(opening) or (n in free and not n.startswith(closing))]
        parts = parts_of(chosen, config) if chosen else ()
        name = "freeze_parameters"
    elif pattern is not None:
        name = "target_regex"
        try:
            parts = parts_of([n for n in every if re.fullmatch(pattern, n)], config)
        except re.error:
            keys.refuse(name, pattern, "which is no regular expression")
    elif targets in ((), ("all-linear",)):
        name, parts = "freeze_llm", in_order(free.values())
    elif len(targets) == 1 and targets[0].startswith("^"):  # as a run writes target_regex in its args.json
        name, parts = "target_modules", parts_of([n for n in every if re.fullmatch(targets[0], n)], config)
    else:
        chosen = [n for n in every if any(n == target or n.endswith(f".{target}") for target in targets)]
        name, parts = "target_modules", parts_of(chosen, config)
    if parts is None:
        given = pattern or " ".join(targets) or " ".join((*closing, *opening))
        hint = "Write target_modules: all-linear, and unfreeze what is to learn."
        keys.refuse(name, given, "and here all layers of a part learn, or none", hint)
    if not parts:
        raise ConfigError(f"{keys.name}: all parts are frozen, so that nothing learns", hint="Unfreeze one.")
    return parts


def _listed(keys: Keys, key: str) -> tuple[str, ...]:
    """Data as a list, or as one path, which may have spaces in it."""
    value = keys.left.get(key)
    if isinstance(value, str):
        keys.left[key] = [value]
    return keys.words(key)


def _sets(keys: Keys, text: str, system: str) -> Sets:
    """`path:subset/subset#count`, where all but the path may be missing."""
    path, names, drawn = text, "", None
    if not Path(path).exists():
        path, _, count = text.rpartition("#") if re.search(r"#\d+$", text) else (text, "", "")
        drawn = int(count) if count else None
    if not Path(path).exists():
        path, _, names = path.partition(":")
    if not Path(path).exists():
        hint = "Download it, and name its file or folder; nothing is downloaded here."
        raise ConfigError(f"{keys.name}: the data {text!r:.200} is not on this machine", hint=hint)
    return Sets((path,), tuple(filter(None, names.split("/"))), drawn=drawn, system=system)


def _options(keys: Keys, environment: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    if str(environment.pop("VIDEO_MAX_SLICE_NUMS", "1")) != "1":
        raise ConfigError(f"{keys.name}: frames of videos are not cut here, so that VIDEO_MAX_SLICE_NUMS can be 1 only")
    if silent := [name for name in _OPTION_DEFAULTS if name not in environment]:
        values = ", ".join(f"{name}={_OPTION_DEFAULTS[name]}" for name in silent)
        notes.append(
            f"{keys.name}: taken as by default there, since it does not say what its environment was: {values}"
        )
    found: dict[str, Any] = {}
    for variable, option in _OPTIONS.items():
        value = str(environment.get(variable, _OPTION_DEFAULTS[variable]))
        if option != "downsample_mode" and not value.isdecimal():
            keys.refuse(variable, value, "expected a whole number")
        found[option] = value if option == "downsample_mode" else int(value)
    return found


def write(
    settings: TuneSettings,
    images: tuple[ImageConfig, ImageConfig],
    options: Mapping[str, Any],
    downsample_mode: str,
    model: str,
    folder: str,
    rate: float,
    has_validation: bool,
    *,
    on_cpu: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """The content of a file, and notes on what is different there.

    Args:
        images: how the model cuts pictures, and videos.
        options: of pictures that are not as the model has them.
        downsample_mode: of the model.
        model: a directory or a name in a hub.
        folder: with the data.
        rate: the highest learning rate.
        on_cpu: see `write_schedule`.

    Raises:
        ConfigError: a setting has no place there.
    """
    check_place(settings, "swift", schedule.KNOWN)
    if "#" in folder:
        raise ConfigError(f"{folder} has a # in its name, which ms-swift takes for a number of samples")
    environment = {
        "DOWNSAMPLE_MODE": options.get("downsample_mode", downsample_mode),
        "MAX_SLICE_NUMS": options.get("max_slice_nums", images[0].max_slice_nums),
        "MAX_NUM_FRAMES": options.get("max_num_frames", images[1].max_num_frames),
        "STACK_FRAMES": options.get("stack_frames", images[1].stack_frames),
    }
    is_full = settings.method == "full"
    keys: dict[str, Any] = {
        "ENV": {name: str(value) for name, value in environment.items()},
        "model": model,
        "model_type": NAME,
        "template": NAME,
        "use_hf": True,
        "check_model": False,
        # Weights that learn are float32 and products bfloat16, as here; on a CPU all of it is float32.
        "torch_dtype": "float32" if is_full or on_cpu else "bfloat16",
        "tuner_type": "full" if is_full else "lora",
        **_freeze(settings),
    }
    if settings.objective == "dpo":
        keys |= {"rlhf_type": "dpo", "beta": settings.beta}
        # Their mean is over the preferred tokens of a device's batch, which is of one pair in what is written here.
        keys |= {"rpo_alpha": settings.rpo_alpha} if settings.rpo_alpha else {}
    if settings.method == "qlora":
        keys |= {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_type": "nf4"}
        keys["bnb_4bit_use_double_quant"] = True
    if not is_full:
        if settings.alpha != settings.alpha // 1:
            raise ConfigError(f"alpha is {settings.alpha}, and ms-swift takes whole numbers", hint="Round --alpha.")
        keys |= {"lora_rank": settings.rank, "lora_alpha": int(settings.alpha), "lora_dropout": settings.dropout}
        keys |= {"use_dora": settings.dora, "use_rslora": settings.rslora}
    keys["dataset"] = [f"{folder}/train.jsonl"]
    if has_validation:
        keys["val_dataset"] = [f"{folder}/validation.jsonl"]
    if settings.max_tokens is not None:
        keys["max_length"] = settings.max_tokens
    keys |= {"truncation_strategy": "right" if settings.truncate else "delete"}
    keys["preserve_thinking"] = False  # no empty block of reasoning in front of earlier answers, as in our prompts
    keys["strict"] = settings.bad_samples == "stop"
    keys |= schedule.write_schedule(settings, rate, has_validation, on_cpu=on_cpu)
    keys["fp16"] = False  # what it takes float32 weights for, unless it is said
    keys |= {"gradient_checkpointing": settings.gradient_checkpointing, "output_dir": f"{folder}/output"}
    keys["add_version"] = False
    notes = ["the linear layers of the tower are in 4 bits there too"] if settings.method == "qlora" else []
    return keys, notes


def _freeze(settings: TuneSettings) -> dict[str, Any]:
    """Flags that freeze parts, and names where a part of the tower alone learns."""
    parts = set(settings.tune)
    vision = parts & {"tower", "compression"}
    flags: dict[str, Any] = {
        "freeze_llm": "decoder" not in parts,
        "freeze_vit": not vision,
        "freeze_aligner": "merger" not in parts,
    }
    if len(vision) != 1:
        return flags if settings.method == "full" else {**flags, "target_modules": ["all-linear"]}
    if settings.method == "full":
        if vision == {"compression"}:  # the tower stays frozen, but for this
            return {**flags, "freeze_vit": True, "trainable_parameters": [COMPRESSION]}
        return {**flags, "freeze_parameters": [COMPRESSION]}
    choices = [re.escape(PREFIXES[part]) for part in in_order(parts)]
    without = rf"(?!{re.escape(COMPRESSION)}\.)" if "compression" not in parts else ""
    last = r"\.(?:.*\.)?(?:\w+_proj\w*|in_proj_\w+|fc[12]|linear_[12])"
    return {**flags, "target_regex": f"^{without}(?:{'|'.join(choices)}){last}$"}
