"""The settings of a run, with their ranges and defaults, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pocketvlm.config import TextConfig
from pocketvlm.errors import ConfigError
from pocketvlm.ranges import Range, show

Method = Literal["lora", "qlora", "full"]
METHODS = ("lora", "qlora", "full")
PARTS = ("decoder", "merger", "compression", "tower")
BAD_SAMPLES = ("skip", "stop")
OBJECTIVES = ("sft", "dpo")
OPTIMISERS = ("adamw", "adamw8bit")
RESULTS = ("last", "best")
TRACKERS = ("tensorboard", "wandb")
# The stages that the published model was trained in (LLaVA-UHD v4, arXiv 2605.08985), by the parts that learn.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "alignment": {"method": "full", "tune": ("merger", "compression")},
    "documents": {"method": "full", "tune": ("tower", "compression")},
    "interleaved": {"method": "full", "tune": PARTS},
    "sft": {"method": "full", "tune": PARTS},
}
# What may change when a run goes on.
_FREE = (
    *("save_every", "eval_every", "eval_tasks", "eval_count", "result", "report_to", "bad_samples"),
    *("micro_tokens", "micro_patches", "gradient_checkpointing"),
)
LOG = "training.jsonl"  # of a run, in its folder
LOG_BEGINS = '{"time":'  # by which it is told from a file of samples
_WIDTH = 1024  # hidden size at which the default rates are what they say


def _setting(default: Any, text: str, allowed: Range | tuple[str, ...] | None = None, *, of: str = "run") -> Any:
    return field(default=default, metadata={"help": text, "allowed": allowed, "of": of})


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What decides a run beside its model and its data.

    Raises:
        ConfigError: a value is out of its range, or two of them do not go together.
    """

    method: str = _setting("lora", "lora, qlora (its base in 4 bits) or full", METHODS)
    objective: str = _setting("sft", "sft (learn the answers) or dpo (prefer them to the rejected ones)", OBJECTIVES)
    tune: tuple[str, ...] = _setting(("decoder",), f"parts that learn: {', '.join(PARTS)}")
    steps: int | None = _setting(
        None, "optimiser steps (default: as many as --epochs are)", Range(int, 1, nullable=True)
    )
    epochs: float = _setting(1.0, "times that every sample is seen", Range(float, 0.0, 1e6, is_open=True))
    minutes: float | None = _setting(
        None, "end after this time, the rate falling to zero", Range(float, 0.0, 1e6, nullable=True, is_open=True)
    )
    batch_size: int = _setting(8, "samples of one step, over all processes", Range(int, 1, 2**20))
    learning_rate: float | None = _setting(
        None,
        "highest rate (default: by method and width of the model)",
        Range(float, 0.0, 10.0, nullable=True, is_open=True),
    )
    warmup: float = _setting(0.03, "share of the steps in which the rate rises", Range(float, 0.0, 1.0), of="optimiser")
    optimiser: str = _setting(
        "adamw", "adamw, or adamw8bit with its moments in 8 bits (extra qlora)", OPTIMISERS, of="optimiser"
    )
    weight_decay: float = _setting(0.0, "weight decay of AdamW", Range(float, 0.0, 1.0), of="optimiser")
    ema: float = _setting(
        0.0,
        "decay of a moving average of the weights, which is then the result; 0: none",
        Range(float, 0.0, 0.99999),
        of="optimiser",
    )
    clip: float = _setting(
        1.0, "largest norm of all gradients together", Range(float, 0.0, 1e6, is_open=True), of="optimiser"
    )
    rank: int = _setting(16, "rank of the LoRA matrices", Range(int, 1, 1024), of="adapters")
    alpha: float = _setting(
        32.0, "of LoRA: what it adds is scaled by alpha / rank", Range(float, 0.0, 1e5, is_open=True), of="adapters"
    )
    dropout: float = _setting(0.0, "dropout on the inputs of LoRA", Range(float, 0.0, 0.99), of="adapters")
    dora: bool = _setting(False, "learn the size of each output apart from its direction (DoRA)", of="adapters")
    rslora: bool = _setting(False, "scale by alpha / √rank (rsLoRA)", of="adapters")
    beta: float = _setting(
        0.1, "of DPO: how far the model may go from what it was", Range(float, 0.0, 100.0, is_open=True)
    )
    rpo_alpha: float = _setting(
        0.0, "of DPO: weight of the loss of the preferred answers themselves (RPO)", Range(float, 0.0, 100.0)
    )
    max_tokens: int | None = _setting(
        None, "longest sample (default: the model's context)", Range(int, 16, nullable=True), of="samples"
    )
    truncate: bool = _setting(False, "cut the end of a longer answer off, instead of refusing the sample", of="samples")
    micro_tokens: int = _setting(4096, "tokens of one forward and backward", Range(int, 16, 2**24), of="memory")
    micro_patches: int = _setting(16384, "patches of one forward and backward", Range(int, 16, 2**24), of="memory")
    gradient_checkpointing: bool = _setting(
        False, "compute layers twice instead of keeping what they computed", of="memory"
    )
    bad_samples: str = _setting("skip", "skip (report, count and go on) or stop", BAD_SAMPLES, of="samples")
    save_every: int = _setting(100, "steps from one checkpoint to the next", Range(int, 1), of="evaluation")
    eval_every: int | None = _setting(
        None,
        "steps from one evaluation to the next (default: at the end only)",
        Range(int, 1, nullable=True),
        of="evaluation",
    )
    eval_tasks: tuple[str, ...] = _setting(
        (), "tasks of `pocketvlm eval` that are asked at each evaluation", of="evaluation"
    )
    eval_count: int = _setting(
        100, "examples of each of these tasks, and most validation samples asked", Range(int, 1), of="evaluation"
    )
    result: str = _setting(
        "last", "last, or best: the weights with the lowest validation loss", RESULTS, of="evaluation"
    )
    report_to: tuple[str, ...] = _setting(
        (), f"where figures go beside the log: {', '.join(TRACKERS)}", of="evaluation"
    )
    from_scratch_compression: str | None = _setting(
        None, "warm: make the early compression anew, from the layer in front of it", ("warm",)
    )
    seed: int = _setting(0, "of the order of samples and of all that is random", Range(int, 0, 2**32 - 1))

    def __post_init__(self) -> None:
        for one in fields(self):
            value, allowed = getattr(self, one.name), one.metadata["allowed"]
            if isinstance(allowed, Range):
                allowed.check(one.name, value)
            elif allowed is not None and value is not None and value not in allowed:
                raise ConfigError(f"{one.name}={show(value)}, expected one of {', '.join(allowed)}")
        if unknown := [part for part in self.tune if part not in PARTS]:
            raise ConfigError(f"tune={show(unknown[0])}, expected some of {', '.join(PARTS)}")
        if unknown := [name for name in self.report_to if name not in TRACKERS]:
            raise ConfigError(f"report_to={show(unknown[0])}, expected some of {', '.join(TRACKERS)}")
        if not self.tune:
            raise ConfigError("tune is empty", hint=f"Name some of {', '.join(PARTS)}.")
        if self.method == "full" and (self.dora or self.rslora):
            raise ConfigError("dora and rslora are kinds of LoRA", hint="Use method lora or qlora.")
        if self.result == "best" and not self.eval_every:
            raise ConfigError("result=best needs evaluations to choose by", hint="Give eval_every too.")
        if self.from_scratch_compression and not (self.method == "full" and "compression" in self.tune):
            raise ConfigError(
                "from_scratch_compression needs method full and compression among the parts that learn",
                hint="Give --method full --tune compression,merger",
            )

    def rate(self, text: TextConfig) -> float:
        """The highest learning rate. The wider a model, the smaller the steps that it bears (Yang et al., arXiv
        2203.03466): the defaults are those in use at a width of 1,024."""
        if self.learning_rate is not None:
            return self.learning_rate
        return (2e-5 if self.method == "full" else 2e-4) * _WIDTH / text.hidden_size

    def identity(self) -> Mapping[str, Any]:
        """What a run that goes on must have as it was begun."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _FREE}


def factor(step: int, steps: int, warmup: float) -> float:
    """Of the highest rate, at a step: it rises in a line, and falls as half a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
