"""What both programs take from `TrainingArguments` of transformers: batch, rate, length, evaluation, seed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.training.interchange.keys import Keys
from pocketvlm.training.settings import TuneSettings

# Settings that have a place in both programs.
KNOWN: tuple[str, ...] = (
    "steps",
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip",
    "seed",
    "save_every",
)
KNOWN += ("eval_every", "gradient_checkpointing", "method", "objective", "tune", "rank", "alpha", "dropout", "dora")
KNOWN += ("rslora", "beta", "rpo_alpha", "max_tokens", "truncate", "optimiser", "result")
FIXED: dict[str, Any] = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
HARMLESS = (
    "logging_* save_* output_dir overwrite_output_dir run_name report_to dataloader* ddp_* deepspeed fsdp* bf16* fp16* "
    "tf32 half_precision_backend accelerator_config per_device_eval_batch_size eval_* do_eval disable_tqdm log_* "
    "push_to_hub* hub_* include_* group_by_length length_column_name torch_compile* torch_empty_cache_steps "
    "gradient_checkpointing_kwargs use_cpu no_cuda ignore_data_skip remove_unused_columns full_determinism "
    "batch_eval_metrics skip_memory_metrics average_tokens_across_devices data_seed restore_* use_liger_kernel "
    "liger_kernel_config local_rank debug past_index label_names auto_find_batch_size enable_jit_checkpoint "
    "trackio_* train_sampling_strategy use_cache prediction_loss_only evaluation_strategy do_train "
    "project parallelism_config use_legacy_prediction_loop neftune_*_module"
)
OFF = (
    "resume_from_checkpoint label_smoothing_factor neftune_noise_alpha optim_args "
    "optim_target_modules lr_scheduler_kwargs do_predict predict_with_generate sortish_sampler"
)
_SCHEDULE = "Here the rate rises in a line and falls as a cosine."
_NONE = 1e6  # a largest norm that no gradient has
# The first of each is what is written.
_OPTIMISERS: dict[str, tuple[str, ...]] = {"adamw": ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")}
_OPTIMISERS |= {"adamw8bit": ("adamw_8bit", "adamw_bnb_8bit")}


@dataclass(frozen=True)
class Defaults:
    """What a program takes where its settings are silent. Attributes: as the keys of a file; `per_step` is the
    samples of a step that it accumulates up to, None where it accumulates only what is asked for."""

    per_device: int
    per_step: int | None
    weight_decay: float
    rate: float
    scheduler: str
    checkpointing: bool
    beta2: float


def read_schedule(keys: Keys, defaults: Defaults, processes: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Settings, and notes on what is silently different there.

    Args:
        processes: that the file itself asks for.

    Raises:
        ConfigError: a value cannot be honoured.
    """
    notes: list[str] = []
    found: dict[str, Any] = {}
    each = keys.whole("per_device_train_batch_size", defaults.per_device) or 1
    times = keys.whole("gradient_accumulation_steps")
    if times is None:
        times = 1 if defaults.per_step is None else max(1, -(-defaults.per_step // (each * processes)))
    found["batch_size"] = each * times * processes
    found["learning_rate"] = keys.number("learning_rate", defaults.rate)
    if "lr_scheduler_type" not in keys.left and defaults.scheduler != "cosine":
        notes.append(f"{keys.name}: no lr_scheduler_type means {defaults.scheduler} there. {_SCHEDULE}")
    keys.one_of("lr_scheduler_type", ["cosine"], "cosine", _SCHEDULE)
    known = {theirs: ours for ours, names in _OPTIMISERS.items() for theirs in names}
    found["optimiser"] = known[keys.one_of("optim", known, "adamw_torch", "Take the key out: it is AdamW here.")]
    if "adam_beta2" not in keys.left and defaults.beta2 != FIXED["adam_beta2"]:
        notes.append(f"{keys.name}: no adam_beta2 means {defaults.beta2} there; here it is 0.999")
    found["weight_decay"] = keys.number("weight_decay", defaults.weight_decay)
    clip = keys.number("max_grad_norm", 1.0)
    found["clip"] = clip if clip else _NONE  # 0: gradients are not clipped there
    steps = keys.whole("max_steps", -1)
    if steps is not None and steps > 0:
        found["steps"] = steps
        keys.number("num_train_epochs")
    else:
        found["epochs"] = keys.number("num_train_epochs", 3.0)
    found["warmup"] = _warmup(keys, found.get("steps"))
    found["seed"] = keys.whole("seed", 42)
    strategy = str(keys.left.get("eval_strategy", "no")).lower()
    every = keys.whole("eval_steps")
    if strategy == "steps" and every is not None:
        found["eval_every"] = every
    if keys.flag("load_best_model_at_end"):
        if "eval_every" not in found:
            keys.refuse("load_best_model_at_end", True, "without eval_strategy: steps and a number of eval_steps")
        found["result"] = "best"
        keys.one_of("metric_for_best_model", ["loss", "eval_loss"], "loss")
        keys.one_of("greater_is_better", ["false"], "false")
    for key in ("metric_for_best_model", "greater_is_better"):  # of nothing that is asked for
        keys.left.pop(key, None)
    if str(keys.left.get("save_strategy", "steps")).lower() == "steps":
        found["save_every"] = keys.whole("save_steps", 500)
    found["gradient_checkpointing"] = keys.flag("gradient_checkpointing", defaults.checkpointing)
    return found, notes


def _warmup(keys: Keys, steps: int | None) -> float:
    share, count = keys.number("warmup_ratio", 0.0) or 0.0, keys.number("warmup_steps", 0.0) or 0.0
    if not count:
        return share
    if count < 1:  # newer versions of transformers take a share there too
        return count
    if steps is None:
        keys.refuse("warmup_steps", count, "and the number of steps is not known", "Give warmup_ratio instead.")
    return min(1.0, count / steps)


def write_schedule(
    settings: TuneSettings, rate: float, has_validation: bool, *, on_cpu: bool = False
) -> dict[str, Any]:
    """Keys of a file, of one process: where there are more, `gradient_accumulation_steps` is to be divided by them.

    Args:
        rate: the highest learning rate.
        on_cpu: products are in float32, as on most CPUs here; in bfloat16 otherwise, as here on a GPU, without which
            both programs refuse that.

    Raises:
        ConfigError: a value means something else there.
    """
    if settings.warmup >= 1:
        raise ConfigError("warmup is 1, which means one step there", hint="Give a --warmup below 1.")
    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs}
    keys: dict[str, Any] = {
        **length,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.batch_size,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "adam_beta1": FIXED["adam_beta1"],
        "adam_beta2": FIXED["adam_beta2"],
        "adam_epsilon": FIXED["adam_epsilon"],
        "optim": _OPTIMISERS[settings.optimiser][0],
        "seed": settings.seed,
        "bf16": not on_cpu,
        **({"use_cpu": True} if on_cpu else {}),
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "logging_steps": 10,
        "report_to": "none",
    }
    if has_validation and settings.eval_every:
        keys |= {"eval_strategy": "steps", "eval_steps": settings.eval_every}
    else:
        keys["eval_strategy"] = "epoch" if has_validation else "no"
    if settings.result == "best":
        if not has_validation:
            raise ConfigError(
                "there are no samples to choose the best weights by", hint="Give --validation or --split."
            )
        # Weights can be taken back where they were saved only.
        keys |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": settings.eval_every}
    if has_validation:
        keys["per_device_eval_batch_size"] = 1
    return keys


def processes_of(environment: Mapping[str, Any]) -> int:
    """How many processes a file's environment, or ours, asks torchrun for."""
    count = environment.get("NPROC_PER_NODE", os.environ.get("WORLD_SIZE", "1"))
    return max(1, int(count)) if str(count).isdecimal() else 1
