"""pocketvlm info: a model and this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

from pocketvlm.cli.common import add_json
from pocketvlm.cli.console import put_json, put_rich
from pocketvlm.machine import usable_cores
from pocketvlm.model.hub import resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    facts = gather(args.model)
    if args.json:
        put_json(facts)
        return 0
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    put_rich(table)
    return 0


def gather(model: str) -> dict[str, Any]:
    """Gather facts of the checkpoint, from its headers (weights stay on disk), and of the machine."""
    directory = resolve(model)
    config, image = directory.config, directory.image_config
    from pocketvlm.api.loading import describe_choice
    from pocketvlm.bundle import Manifest
    from pocketvlm.cli.version import version_text
    from pocketvlm.model.weight_files import count_parameters, weight_files

    if directory.kind == "bundle":
        weights: dict[str, Any] = {"weights_bytes": sum(Manifest.read(directory.path).files.values())}
    else:
        sizes = sum(f.stat().st_size for f in weight_files(directory.path))
        weights = {"parameters": count_parameters(directory.path), "weights_bytes": sizes}
    kinds = config.text.layer_types
    return {
        "model": model,
        "directory": str(directory.path),
        **weights,
        **describe_choice(directory),
        "vision_layers": config.vision.num_hidden_layers,
        "vision_hidden_size": config.vision.hidden_size,
        "early_compression_after_layer": config.insert_layer_id,
        "linear_attention_layers": kinds.count("linear_attention"),
        "full_attention_layers": kinds.count("full_attention"),
        "hidden_size": config.text.hidden_size,
        "vocab_size": config.text.vocab_size,
        "context": config.text.max_position_embeddings,
        "scale_resolution": image.scale_resolution,
        "max_slice_nums": image.max_slice_nums,
        "pocketvlm": version_text(),
        "torch": _version("torch"),
        "onnxruntime": _onnxruntime(),
        "python": platform.python_version(),
        "processors": usable_cores(),
        "device": _device(),
    }


def _version(package: str) -> str:
    """Of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _onnxruntime() -> str:
    """Its version, in whichever of its distributions it came."""
    found = importlib.metadata.packages_distributions().get("onnxruntime")
    return _version(found[0]) if found else "not installed"


def _device() -> str:
    """The GPU if there is one that PyTorch can use, else the processor."""
    from pocketvlm.api.gpu import has_gpu, has_unused_gpu
    from pocketvlm.machine import processor_name

    if not has_gpu():
        unused = "; a GPU needs the extra torch (or cuda)" if has_unused_gpu() else ""
        return f"{processor_name()}{unused}"
    import torch

    return torch.cuda.get_device_name()
