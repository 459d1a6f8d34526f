"""LLaMA-Factory's settings for training (`llamafactory-cli train FILE.yaml`) ↔ a run here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pocketvlm.config import ModelConfig
from pocketvlm.errors import ConfigError
from pocketvlm.training.interchange import schedule
from pocketvlm.training.interchange.job import Job, Sets, check_place
from pocketvlm.training.interchange.keys import Keys
from pocketvlm.training.interchange.targets import DECODER, MERGER, TOWER, in_order, layers, layers_of, parts_of
from pocketvlm.training.settings import TuneSettings

TEMPLATE = "minicpm_v_4_6"
_TEMPLATE_SYSTEM = "You are a helpful assistant."  # what that template puts in front of a conversation without one
_DEFAULTS = schedule.Defaults(8, None, 0.0, 5e-5, "linear", True, 0.999)
_CUTOFF = 2048
_RATE = "16x"  # of its processor, whatever the checkpoint's config.json says
_HARMLESS = (
    f"{schedule.HARMLESS} template plot_loss overwrite_cache preprocessing_* trust_remote_code pure_bf16 image_* "
    "crop_to_patches video_* compute_accuracy enable_thinking preserve_thinking flash_attn use_unsloth_gc "
    "use_unsloth enable_liger_kernel use_fast_tokenizer cache_dir model_revision low_cpu_mem_usage upcast_* "
    "use_reentrant_gc print_param_status *_hub_token use_swanlab swanlab_* ray_* resources_per_worker "
    "placement_strategy streaming buffer_size data_shared* ignore_pad_token_for_loss quantization_device_map "
    "use_kv_cache infer_* offload_folder use_v1_kernels audio_sampling_rate use_audio_in_video loraplus_lr_embedding "
    "pissa_iter pissa_convert create_new_adapter galore_* apollo_* badam_* freeze_trainable_* ppo_* kto_* simpo_gamma "
    "asft_alpha eaft_alpha vllm_* sglang_* init_special_tokens eval_on_each_dataset"
)
_OFF = (
    f"{schedule.OFF} packing neat_packing mask_history train_on_prompt interleave_probs tokenized_path tool_format "
    "adapter_name_or_path adapter_folder additional_target loraplus_lr_ratio pissa_init use_llama_pro use_galore "
    "use_apollo use_badam use_adam_mini use_muon use_dft_loss use_asft_loss use_eaft_loss use_mca use_megatron_bridge "
    "use_hyper_parallel dpo_label_smoothing pref_bco_weight ld_alpha ref_model ref_model_adapters "
    "ref_model_quantization_bit reward_model disable_shuffling early_stopping_steps mixture_of_depths shift_attn "
    "rope_scaling resize_vocab add_tokens add_special_tokens new_special_tokens_config train_from_scratch "
    "split_special_tokens moe_aux_loss_coef freeze_extra_modules use_kt"
)
_FIXED = {
    **schedule.FIXED,
    "mix_strategy": "concat",
    "pref_loss": "sigmoid",
    "quantization_method": "bnb",
    "quantization_type": "nf4",
    "double_quantization": True,
}


def read(keys: Keys, config: ModelConfig) -> Job:
    """What a file says.

    Raises:
        ConfigError: a key would change what is learnt and cannot be honoured, or is unknown.
    """
    found, notes = schedule.read_schedule(keys, _DEFAULTS, schedule.processes_of({}))
    found["gradient_checkpointing"] = not keys.flag("disable_gradient_checkpointing")
    found["objective"] = keys.one_of("stage", ["sft", "dpo"], "sft")
    found["method"] = keys.one_of("finetuning_type", ["lora", "full"], "lora")
    if (bits := keys.whole("quantization_bit")) is not None:
        if bits != 4 or found["method"] == "full":
            keys.refuse("quantization_bit", bits, "and here it can be 4 only, with finetuning_type lora")
        found["method"] = "qlora"
    found["tune"] = _parts(keys, config, found["method"], notes)
    rank = keys.whole("lora_rank", 8) or 8
    adapters: dict[str, Any] = {
        "rank": rank,
        "alpha": keys.number("lora_alpha") or 2.0 * rank,
        "dropout": keys.number("lora_dropout", 0.0),
        "dora": keys.flag("use_dora"),
        "rslora": keys.flag("use_rslora"),
    }
    preferences = {"beta": keys.number("pref_beta", 0.1), "rpo_alpha": keys.number("pref_ftx", 0.0)}
    found |= adapters if found["method"] != "full" else {}
    found |= preferences if found["objective"] == "dpo" else {}
    found |= {"max_tokens": keys.whole("cutoff_len", _CUTOFF), "truncate": True}
    model = keys.text("model_name_or_path")
    data, validation = _data(keys, notes)
    share = keys.number("val_size", 0.0)
    split = None if not share else (share if share < 1 else int(share))
    workers = keys.whole("dataloader_num_workers", 0) or 0
    notes += keys.close(_HARMLESS, _OFF, _FIXED)
    notes.append(f"{keys.name}: pictures are encoded at {_RATE}, as there where DOWNSAMPLE_MODE is not set")
    return Job(found, model, data, validation, split, workers, {"downsample_mode": _RATE}, tuple(notes))


def _parts(keys: Keys, config: ModelConfig, method: str, notes: list[str]) -> tuple[str, ...]:
    """What learns, by the flags that freeze parts and the layers that adapters are for."""
    frozen = {
        TOWER: keys.flag("freeze_vision_tower", True),
        MERGER: keys.flag("freeze_multi_modal_projector", True),
        DECODER: keys.flag("freeze_language_model"),
    }
    free = [prefix for prefix, is_frozen in frozen.items() if not is_frozen]
    targets = keys.words("lora_target", ",") or ("all",)
    every = layers(config)
    open_layers = {name: part for name, part in every.items() if name.startswith(tuple(f"{one}." for one in free))}
    if method == "full":
        parts: tuple[str, ...] | None = in_order(open_layers.values())
    elif targets == ("all",):
        # The names of layers are looked for without the merger, and without a tower that is frozen, and then used
        # wherever they are found in what is not frozen.
        without = (MERGER, TOWER) if frozen[TOWER] else (MERGER,)
        names = {name.rpartition(".")[2] for name in every if not name.startswith(without)}
        parts = in_order(part for name, part in open_layers.items() if name.rpartition(".")[2] in names)
        if "merger" not in parts and not frozen[MERGER]:
            notes.append(f"{keys.name}: lora_target all puts no adapters beside the merger there, and none here")
    else:
        chosen = [name for name in open_layers if any(target in name for target in targets)]
        parts = parts_of(chosen, config)
    if parts is None:
        hint = "Write lora_target: all, and unfreeze what is to learn."
        keys.refuse("lora_target", ",".join(targets), "and here all linear layers of a part learn, or none", hint)
    if not parts:
        raise ConfigError(f"{keys.name}: all parts are frozen, so that nothing learns", hint="Unfreeze one.")
    return parts


def _data(keys: Keys, notes: list[str]) -> tuple[tuple[Sets, ...], tuple[Sets, ...]]:
    folder = keys.text("dataset_dir", "data") or "data"
    media, first = keys.text("media_dir"), keys.whole("max_samples")
    system = keys.text("default_system")
    if system is None and "default_system" in keys.empty:
        system = ""
    if system is None and keys.left.get("template") == TEMPLATE:
        system = _TEMPLATE_SYSTEM
        notes.append(f"{keys.name}: conversations without a system message get that of the template: {system}")

    def sets(key: str) -> tuple[Sets, ...]:
        names = keys.words(key, ",")
        return (Sets((folder,), names, media, first, system=system or ""),) if names else ()

    return sets("dataset"), sets("eval_dataset")


def write(
    settings: TuneSettings,
    config: ModelConfig,
    model: str,
    folder: str,
    rate: float,
    has_validation: bool,
    *,
    on_cpu: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """The content of a file, and notes on what is different there.

    Args:
        model: a directory or a name in a hub.
        folder: with `dataset_info.json`.
        rate: the highest learning rate.
        on_cpu: see `write_schedule`.

    Raises:
        ConfigError: a setting has no place there.
    """
    check_place(settings, "llamafactory", schedule.KNOWN)
    is_full = settings.method == "full"
    keys: dict[str, Any] = {
        "model_name_or_path": model,
        "template": TEMPLATE,
        "stage": settings.objective,
        "do_train": True,
        "finetuning_type": "full" if is_full else "lora",
        **_freeze(settings, config),
    }
    if settings.method == "qlora":
        keys |= {"quantization_bit": 4, "quantization_method": "bnb", "quantization_type": "nf4"}
        keys["double_quantization"] = True
    if not is_full:
        if settings.alpha != settings.alpha // 1:
            raise ConfigError(f"alpha is {settings.alpha}, LLaMA-Factory takes whole numbers", hint="Round --alpha.")
        keys |= {"lora_rank": settings.rank, "lora_alpha": int(settings.alpha), "lora_dropout": settings.dropout}
        keys |= {"use_dora": settings.dora, "use_rslora": settings.rslora}
    if settings.objective == "dpo":
        keys |= {"pref_loss": "sigmoid", "pref_beta": settings.beta, "pref_ftx": settings.rpo_alpha}
    keys |= {"dataset_dir": folder, "dataset": "train"}
    if has_validation:
        keys["eval_dataset"] = "validation"
    keys |= {"default_system": "", "cutoff_len": settings.max_tokens or config.text.max_position_embeddings}
    keys |= schedule.write_schedule(settings, rate, has_validation, on_cpu=on_cpu)
    keys |= {"disable_gradient_checkpointing": not settings.gradient_checkpointing, "plot_loss": True}
    keys["output_dir"] = f"{folder}/output"
    notes = ["its template sets no empty block of reasoning in front of answers, as the checkpoint's own does"]
    if settings.batch_size > 1 and settings.objective == "sft":
        notes.append("the samples of a step weigh the same there, and their learnt tokens here")
    if not settings.truncate:
        notes.append("samples that are longer than cutoff_len are cut there, and refused here")
    if settings.method == "qlora":
        notes.append("the linear layers of the tower are in 4 bits there too")
    return keys, notes


def _freeze(settings: TuneSettings, config: ModelConfig) -> dict[str, Any]:
    """Flags that freeze parts, and the layers that adapters are for where the flags alone cannot say it."""
    parts = set(settings.tune)
    vision = parts & {"tower", "compression"}
    flags: dict[str, Any] = {
        "freeze_vision_tower": not vision,
        "freeze_multi_modal_projector": "merger" not in parts,
        "freeze_language_model": "decoder" not in parts,
    }
    if settings.method == "full":
        if len(vision) == 1:
            hint = "Tune both of them, or use LoRA."
            raise ConfigError(f"LLaMA-Factory has no place for {vision.pop()} alone in full fine-tuning", hint=hint)
        return flags
    if len(vision) != 1 and ("merger" not in parts or vision):
        return {**flags, "lora_target": "all"}
    return {**flags, "lora_target": ",".join(_short(layers_of(parts, config), config, flags))}


def _short(chosen: Iterable[str], config: ModelConfig, flags: dict[str, Any]) -> list[str]:
    """Last names of layers, where those say the same beside the flags; else whole names."""
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in chosen))
    closed = [prefix for key, prefix in _FLAGS.items() if flags[key]]
    met = [n for n in layers(config) if not n.startswith(tuple(closed)) and any(name in n for name in names)]
    return names if set(met) == set(chosen) else list(chosen)


_FLAGS = {
    "freeze_vision_tower": TOWER,
    "freeze_multi_modal_projector": MERGER,
    "freeze_language_model": DECODER,
}
