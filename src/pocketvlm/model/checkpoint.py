"""Read and write checkpoints in the published layout.

A checkpoint is a directory with `config.json` and one `model.safetensors`, or several shards and their index. Weights
are read tensor by tensor from a memory map straight into their final dtype and device, so a second copy of the model
never exists.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from pocketvlm.model.names import export_tensor, import_tensor, our_name, published_names, published_shape
from pocketvlm.model.text.decoder import fp32_parameters
from pocketvlm.model.vlm import MiniCPMV, can_use_cpu_kernels
from pocketvlm.text_files import is_there, read_json

logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Resident pages of a mapped file count as memory of the process, so the map is renewed after this many bytes.
REMAP_BYTES = 256 * 2**20
Progress = Callable[[int, int], None]

# Multi-token prediction: a further layer that drafts tokens. The reference leaves it out as well.
_MTP = re.compile(r"(model\.)?(language_model\.)?mtp\.")


def published_tensor(model: MiniCPMV, ours: str) -> Tensor:
    """A parameter by our name, with its published values and shape."""
    return export_tensor(ours, model.get_parameter(ours), model.config.vision)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: the index's shards, or the single file."""
    if is_there(directory / INDEX):
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / INDEX} has no weight_map")
        files = [directory / name for name in sorted({str(name) for name in weight_map.values()})]
    elif is_there(directory / WEIGHTS):
        return [directory / WEIGHTS]
    else:
        raise diagnosis.without_weights(directory)
    if any(file.parent != directory for file in files):
        raise CheckpointError(f"{directory / INDEX} names a file outside the checkpoint")
    if other := [file.name for file in files if file.suffix != ".safetensors"]:  # the fingerprint would not cover it
        raise CheckpointError(f"{directory / INDEX} names {other[0]:.80}, expected *.safetensors files only")
    if missing := [file for file in files if not is_there(file)]:
        raise CheckpointError(
            f"{missing[0]} does not exist: {len(missing)} of the {len(files)} files that {INDEX} names are missing",
            hint="Download or copy them again.",
        )
    return files


def count_parameters(directory: Path) -> int:
    """Parameters of a checkpoint, from the headers of its files."""
    total = 0
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as handle:
                total += sum(math.prod(handle.get_slice(name).get_shape()) for name in _used(handle))
        except (SafetensorError, OSError):
            raise diagnosis.of_unreadable(file) from None
    return total


def stored_dtype(directory: Path) -> torch.dtype:
    """bfloat16 where no weight of the checkpoint would lose anything in it (half the memory holds it), else fp32."""
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as handle:
                kinds = {handle.get_slice(name).get_dtype() for name in _used(handle)}
        except (SafetensorError, OSError):
            raise diagnosis.of_unreadable(file) from None
        if not kinds <= {"BF16", "BOOL"}:
            return torch.float32
    return torch.bfloat16


def _used(handle: Any) -> list[str]:
    """Names of the tensors of an open file without those of multi-token prediction."""
    return [name for name in handle.keys() if not _MTP.match(name)]  # noqa: SIM118  # it is no mapping


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
    missing, keep_fp32 = dict(model.named_parameters()), fp32_parameters(model)
    unexpected, misshapen, integers, unused = list[str](), list[str](), list[str](), 0
    for file in files:
        for published, tensor in _read_tensors(file):
            done += tensor.nbytes
            if _MTP.match(published):
                unused += 1
                continue
            ours = our_name(published)
            if published == "lm_head.weight" and config.text.tie_word_embeddings:
                # Some exporters write the tied head a second time; whether it is the same would cost reading both.
                logger.warning("%s: lm_head.weight is left out: config.json ties it to the embedding", directory)
                continue
            if ours not in missing:
                unexpected.append(published)
                continue
            shape = missing.pop(ours).shape
            expected = published_shape(ours, shape, config)
            if tensor.shape != expected:
                misshapen.append(f"{published} {list(tensor.shape)} instead of {list(expected)}")
                continue
            if not tensor.is_floating_point():
                integers.append(f"{published} ({str(tensor.dtype).removeprefix('torch.')})")
                continue
            target = torch.float32 if ours in keep_fp32 else dtype
            if narrow and tensor.dtype == torch.bfloat16 and tensor.dim() == 2 and ours.startswith("language_model."):
                target = tensor.dtype  # `use_cpu_kernels` never needs these in fp32
            value = torch.empty(shape, dtype=target, device=device).copy_(import_tensor(ours, tensor))
            owner, _, leaf = ours.rpartition(".")
            layer = model.get_submodule(owner)
            layer.register_parameter(leaf, nn.Parameter(value))
            del tensor, value
            if on_linear and isinstance(layer, nn.Linear) and not any(p.is_meta for p in layer.parameters()):
                on_linear(model, owner)
            del layer
            if progress is not None:
                progress(done, total)
    if unused:
        logger.warning("%s: mtp.* tensors (%d) are left out: tokens are predicted one by one", directory, unused)
    if (directory / diagnosis.ADAPTER).is_file():
        logger.warning("%s has an adapter beside its weights, which is not applied", directory)
    for ours in [name for name in missing if without and name.startswith(without)]:
        owner, _, leaf = ours.rpartition(".")
        value = torch.zeros(missing.pop(ours).shape, dtype=dtype, device=device)
        model.get_submodule(owner).register_parameter(leaf, nn.Parameter(value))
    names = published_names(model)
    _complain(directory, [names[ours] for ours in missing], unexpected, misshapen, integers)
    model.eval()
    if isinstance(given, ModelDirectory) and given.adapter is not None:
        merge(model, read_adapter(given.adapter, config), dtype=merged_dtype or dtype, narrow=narrow)
    if cpu_kernels:
        model.use_cpu_kernels((lambda done, all_: progress(size + size * done // all_, total)) if progress else None)
    if progress is not None:
        progress(total, total)  # headers are bytes too, and there may have been nothing to pack
    return model


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


def _complain(
    directory: Path, missing: list[str], unexpected: list[str], misshapen: list[str], integers: list[str]
) -> None:
    """Raise one error that lists everything that does not fit."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    faults = [
        f"{len(names)} {what}: {some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("not of floating point", integers),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"the weights in {directory} do not fit its config.json: " + "; ".join(faults),
            hint="Use the weights that came with this config.json.",
        )


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
