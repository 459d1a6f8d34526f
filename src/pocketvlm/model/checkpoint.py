"""Read and write checkpoints in the published layout.

A checkpoint is a directory with `config.json` and one `model.safetensors`, or several shards and their index. Weights
are read tensor by tensor from a memory map straight into their final dtype and device, so a second copy of the model
never exists.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.config_files import has_image_config, read_image_configs
from pocketvlm.errors import CheckpointError, OutputError
from pocketvlm.files import whole_file
from pocketvlm.kernels.linear import fp16_linear
from pocketvlm.kernels.linear.cpu_linear import CPULinear
from pocketvlm.model import diagnosis
from pocketvlm.model.adapters.merge import merge
from pocketvlm.model.adapters.peft_folder import read_adapter
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.names import export_tensor, import_tensor, our_name, published_names
from pocketvlm.model.text.decoder import fp32_parameters
from pocketvlm.model.vlm import MiniCPMV, can_use_cpu_kernels
from pocketvlm.model.weight_files import REMAP_BYTES, WEIGHTS, find_parameters, used_names, weight_files
from pocketvlm.text_files import read_json

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def published_tensor(model: MiniCPMV, ours: str) -> Tensor:
    """A parameter by our name, with its published values and shape."""
    return export_tensor(ours, model.get_parameter(ours), model.config.vision)


def stored_dtype(directory: Path) -> torch.dtype:
    """bfloat16 where no weight of the checkpoint would lose anything in it (half the memory holds it), else fp32."""
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as handle:
                kinds = {handle.get_slice(name).get_dtype() for name in used_names(handle)}
        except (SafetensorError, OSError):
            raise diagnosis.of_unreadable(file) from None
        if not kinds <= {"BF16", "BOOL"}:
            return torch.float32
    return torch.bfloat16


def _read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one file, from a memory map that is renewed before it grows large."""
    try:
        with safe_open(file, framework="pt") as handle:
            names = list(handle.keys())
        while names:
            read = 0
            with safe_open(file, framework="pt") as handle:
                while names and read < REMAP_BYTES:
                    tensor = handle.get_tensor(name := names.pop(0))
                    read += tensor.nbytes
                    yield name, tensor
                    del tensor
    except (SafetensorError, OSError):
        raise diagnosis.of_unreadable(file) from None


def load_model(
    directory: str | Path | ModelDirectory,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cpu_kernels: bool = False,
    merged_dtype: torch.dtype | None = None,
    without: str = "",
    on_linear: Callable[[MiniCPMV, str], None] | None = None,
    progress: Progress | None = None,
) -> MiniCPMV:
    """Load a checkpoint directory for inference (evaluation mode).

    Args:
        dtype: of the weights in memory; the published config names none. A_log and dt_bias stay fp32.
        cpu_kernels: `MiniCPMV.use_cpu_kernels` at once, in less memory than afterwards; nothing off the CPU.
        merged_dtype: of the weights that the directory's adapter changes; None is `dtype`.
        without: prefix of our names of the parameters that the checkpoint may lack, which are zero then; "" for none.
        on_linear: called with the name of a linear layer once its values are there, which it may replace; not with an
            adapter in the directory, whose merge needs the weights.
        progress: called with (done, in all), in bytes read and packed, after every tensor.

    Raises:
        ConfigError: config.json is missing or does not fit.
        CheckpointError: weights are missing, truncated, or of other names or shapes; every such name is listed.
    """
    config, image = _configs(directory)
    given, directory = directory, Path(directory)
    with torch.device("meta"):
        model = MiniCPMV(config, image.image_mean, image.image_std)
    files = weight_files(directory)
    size, done = sum(f.stat().st_size for f in files), 0
    cpu_kernels = cpu_kernels and can_use_cpu_kernels(torch.device(device), dtype)
    total = 2 * size if cpu_kernels else size
    narrow = cpu_kernels and fp16_linear.is_available()
    found, keep_fp32 = find_parameters(directory, config, files, without), fp32_parameters(model)
    for file in files:
        for published, tensor in _read_tensors(file):
            done += tensor.nbytes
            ours = our_name(published)
            place = found.get(ours)
            if place is None or (place.file, place.published) != (file, published):
                continue
            target = torch.float32 if ours in keep_fp32 else dtype
            if narrow and tensor.dtype == torch.bfloat16 and tensor.dim() == 2 and ours.startswith("language_model."):
                target = tensor.dtype  # `use_cpu_kernels` never needs these in fp32
            values = import_tensor(ours, tensor)
            if values.shape != model.get_parameter(ours).shape:
                raise _changed(file)
            value = torch.empty(values.shape, dtype=target, device=device).copy_(values)
            owner, _, leaf = ours.rpartition(".")
            layer = model.get_submodule(owner)
            layer.register_parameter(leaf, nn.Parameter(value))
            del tensor, values, value
            if on_linear and isinstance(layer, nn.Linear) and not any(p.is_meta for p in layer.parameters()):
                on_linear(model, owner)
            del layer
            if progress is not None:
                progress(done, total)
    for ours, parameter in list(model.named_parameters()):
        if ours in found and parameter.is_meta:
            raise _changed(found[ours].file)
        if ours not in found:
            owner, _, leaf = ours.rpartition(".")
            value = torch.zeros(parameter.shape, dtype=dtype, device=device)
            model.get_submodule(owner).register_parameter(leaf, nn.Parameter(value))
    model.eval()
    if isinstance(given, ModelDirectory) and given.adapter is not None:
        merge(model, read_adapter(given.adapter, config), dtype=merged_dtype or dtype, narrow=narrow)
    if cpu_kernels:
        model.use_cpu_kernels((lambda done, all_: progress(size + size * done // all_, total)) if progress else None)
    if progress is not None:
        progress(total, total)  # headers are bytes too, and there may have been nothing to pack
    return model


def _changed(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} was written to while it was read", hint="Try again when it is complete.")


def _configs(directory: str | Path | ModelDirectory) -> tuple[ModelConfig, ImageConfig]:
    """Of a model's directory, or of weights alone, such as training leaves behind."""
    if isinstance(directory, ModelDirectory):
        return directory.config, directory.image_config
    directory = Path(directory)
    if (error := diagnosis.without_config(directory)) is not None:
        raise error
    config = ModelConfig.from_dict(read_json(directory / "config.json"))
    if has_image_config(directory):
        return config, read_image_configs(directory, config.downsample_mode)[0]
    logger.warning("%s does not say how pictures are normalised: the published mean and deviation hold", directory)
    return config, ImageConfig()


def save_model(model: MiniCPMV, directory: str | Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `config.json` and `model.safetensors` in the published layout, the weights complete or not at all.

    Raises:
        CheckpointError: the model has CPU kernels, which keep no plain weights; nothing is written.
        ConfigError, OutputError: a file cannot be made, or not be written to its end; no half of it is left.
    """
    if any(isinstance(module, CPULinear) for module in model.modules()):
        raise CheckpointError(
            "a model with CPU kernels has no plain weights to save", hint="Load it by load_model without cpu_kernels."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = published_names(model)
    tensors = {published: published_tensor(model, ours).to("cpu", dtype) for ours, published in names.items()}
    with whole_file(directory / WEIGHTS) as file:
        try:
            save_file(tensors, file.name, metadata={"format": "pt"})
        except SafetensorError as error:  # what the system says, as this library says it
            raise OutputError(f"{directory / WEIGHTS} cannot be written: {error}") from None
    with whole_file(directory / "config.json") as file:
        file.write((json.dumps(model.config.to_dict(), indent=2) + "\n").encode())
