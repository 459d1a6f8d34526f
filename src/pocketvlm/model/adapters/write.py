"""Write an adapter as PEFT reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pocketvlm.config import ModelConfig
from pocketvlm.errors import OutputError
from pocketvlm.files import whole_file
from pocketvlm.model.adapters.lora import Adapter, LowRankUpdate
from pocketvlm.model.adapters.names import PEFT_PREFIX, published_layers
from pocketvlm.model.adapters.settings import CONFIG, WEIGHTS
from pocketvlm.model.names import PATCH_EMBEDDING, export_tensor


def write_adapter(adapter: Adapter, directory: str | Path, config: ModelConfig) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` under the published names, each whole or not at all.

    Args:
        config: of the model that it is for.

    Raises:
        ConfigError, OutputError: a file cannot be made, or not be written to its end.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    layers = published_layers(config)
    tensors: dict[str, Tensor] = {}
    for ours, update in adapter.updates.items():
        for part, tensor in _parts(ours, update, config).items():
            suffix = "" if part == "lora_magnitude_vector" else ".weight"
            tensors[f"{PEFT_PREFIX}{layers[ours]}.{part}{suffix}"] = tensor.detach().cpu().contiguous()
    with whole_file(directory / WEIGHTS) as file:
        try:
            save_file(tensors, file.name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError(f"{directory / WEIGHTS} cannot be written: {error}") from None
    settings = _settings(adapter, {ours: layers[ours] for ours in adapter.updates})
    with whole_file(directory / CONFIG) as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())


def _parts(ours: str, update: LowRankUpdate, config: ModelConfig) -> dict[str, Tensor]:
    """Tensors of a layer in their stored shapes."""
    a, b, magnitude = update.a_RK, update.b_NR, update.magnitude_N
    if ours == PATCH_EMBEDDING:
        a, b = export_tensor(ours, a, config.vision), b[:, :, None, None]
        magnitude = None if magnitude is None else magnitude[None, :, None, None]
    return {"lora_A": a, "lora_B": b} | ({} if magnitude is None else {"lora_magnitude_vector": magnitude})


def _settings(adapter: Adapter, layers: dict[str, str]) -> dict[str, Any]:
    """Scales are kept as alpha / r of plain LoRA; a layer of another rank or scale than the first has its own entry."""
    ranks = {ours: len(update.a_RK) for ours, update in adapter.updates.items()}
    alphas = {ours: update.scale * ranks[ours] for ours, update in adapter.updates.items()}
    first = next(iter(adapter.updates))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base or None,
        "inference_mode": True,
        "bias": "none",
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": {f"^{layers[o]}": r for o, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {
            f"^{layers[o]}": alpha for o, alpha in alphas.items() if not math.isclose(alpha, alphas[first])
        },
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": any(update.magnitude_N is not None for update in adapter.updates.values()),
        "target_modules": sorted(layers.values()),
    }
