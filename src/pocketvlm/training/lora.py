"""Low-rank adapters beside the layers of a model that learns, through `peft`.

Papers: LoRA (Hu et al., arXiv 2106.09685), DoRA (arXiv 2402.09353), rsLoRA (arXiv 2312.03732).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketvlm.errors import MissingExtraError
from pocketvlm.lenient_imports import lenient_registrations, offline
from pocketvlm.model.adapters.lora import Adapter, LowRankUpdate
from pocketvlm.model.adapters.write import write_adapter
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.memory import import_bitsandbytes
from pocketvlm.training.parts import linear_layers
from pocketvlm.training.settings import TuneSettings

_NAME = "default"  # what peft calls the adapter of a model that has one


def import_peft() -> Any:
    """The package, or an error that says how to get it."""
    with suppress(MissingExtraError):
        import_bitsandbytes()  # which peft would import where it is there, in its own way
    try:
        # It imports transformers, and that torchvision where it is there; and bitsandbytes.
        with lenient_registrations(), offline():
            import peft
    except ImportError:
        raise MissingExtraError("peft", "tune") from None
    return peft


def add_lora(model: MiniCPMV, settings: TuneSettings) -> list[str]:
    """Put adapters beside the linear layers of the parts that learn, in place; nothing else learns afterwards.

    Returns:
        our names of the layers.
    """
    layers, peft = list(linear_layers(model, settings.tune)), import_peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        bias="none",
        target_modules=layers,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # they learn in fp32, also beside a base in half precision
            parameter.data = parameter.data.float()
    return layers


def save_adapter(model: MiniCPMV, layers: Sequence[str], directory: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors under the published names, each whole or not at all.

    Args:
        layers: what `add_lora` returned.
        base: what the base model is called.
    """
    updates = {f"{name}.weight": _update(model.get_submodule(name)) for name in layers}
    write_adapter(Adapter(directory, "", updates, base), directory, model.config)


def _update(layer: Any) -> LowRankUpdate:
    """What peft keeps beside a layer."""
    magnitudes = layer.lora_magnitude_vector
    return LowRankUpdate(
        layer.lora_A[_NAME].weight.detach(),
        layer.lora_B[_NAME].weight.detach(),
        float(layer.scaling[_NAME]),
        magnitudes[_NAME].weight.detach() if _NAME in magnitudes else None,
    )
