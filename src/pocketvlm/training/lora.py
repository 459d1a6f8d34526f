"""Low-rank adapters through `peft`, under the published names of the layers, so that they load in peft on transformers.

Papers: LoRA (Hu et al., arXiv 2106.09685), DoRA (arXiv 2402.09353), rsLoRA (arXiv 2312.03732).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pocketvlm.errors import MissingExtraError
from pocketvlm.files import whole_file
from pocketvlm.lenient_imports import lenient_registrations
from pocketvlm.model.names import published_name
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.parts import linear_layers
from pocketvlm.training.settings import TuneSettings

if TYPE_CHECKING:
    import peft

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE = "base_model.model."  # what PeftModel puts before the names of the model in it


def import_peft() -> Any:
    """The package, or an error that says how to get it."""
    try:
        with lenient_registrations():  # it imports transformers, and that torchvision where it is there
            import peft
    except ImportError:
        raise MissingExtraError("peft", "tune") from None
    return peft


def lora_config(settings: TuneSettings, layers: Sequence[str]) -> peft.LoraConfig:
    """The configuration for linear layers of some names."""
    return import_peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        bias="none",
        target_modules=list(layers),
    )


def add_lora(model: MiniCPMV, settings: TuneSettings) -> list[str]:
    """Put adapters beside the linear layers of the parts that learn, in place; nothing else learns afterwards.

    Returns:
        our names of the layers.
    """
    layers = list(linear_layers(model, settings.tune))
    peft, config = import_peft(), lora_config(settings, layers)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # they learn in fp32, also beside a base in half precision
            parameter.data = parameter.data.float()
    return layers


def adapter_tensors(model: MiniCPMV) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the names that its file has."""
    state = import_peft().get_peft_model_state_dict(model)
    return {_published(name): tensor.detach().contiguous().cpu() for name, tensor in state.items()}


def save_adapter(model: MiniCPMV, settings: TuneSettings, layers: Sequence[str], directory: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, each whole or not at all.

    Args:
        layers: what `add_lora` returned.
        base: what the base model is called.
    """
    from safetensors.torch import save

    with whole_file(directory / WEIGHTS) as file:
        file.write(save(adapter_tensors(model), metadata={"format": "pt"}))
    config = lora_config(settings, [published_name(name) for name in layers])
    config.base_model_name_or_path, config.inference_mode = base, True
    given: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    entries = {name: sorted(value) if isinstance(value, set) else value for name, value in given.items()}
    with whole_file(directory / CONFIG) as file:
        file.write(f"{json.dumps(entries, indent=2, default=str)}\n".encode())


def _published(name: str) -> str:
    """The name in an adapter's file of a tensor that peft calls `name` here."""
    head, separator, tail = name.partition(".lora_")
    return f"{_BEFORE}{published_name(head)}{separator}{tail}"
