"""Checkpoints → bundles: written beside their place and moved there when complete.

Weights are read and quantised while they are written, some rows at a time. A model with an adapter, or of floats that
NumPy does not know, is loaded as a whole instead, which takes PyTorch.
"""

from __future__ import annotations

import gc
import importlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketvlm.bundle import GRAPHS, Manifest, Operators, PartOperators, Quantization
from pocketvlm.config import ModelConfig
from pocketvlm.errors import OutputError, need
from pocketvlm.export.model_files import copy_text_files
from pocketvlm.export.new_directory import new_directory, unchanged
from pocketvlm.machine import CACHE_VARIABLE
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.parameter_shapes import parameter_shapes
from pocketvlm.model.weights import StoredWeights, Weights

Progress = Callable[[int, int], None]

# Bytes a weight takes in a bundle, scales included; for the free space and the progress bar.
_BYTES = {"fp32": 4.0, "int8": 1.01, "int4": 0.54}


def write_bundle(
    checkpoint: Path | ModelDirectory,
    out: Path,
    quantization: Quantization,
    progress: Progress | None = None,
    operators: Operators | PartOperators = "standard",
) -> Manifest:
    """Write the bundle of `checkpoint` to the new directory `out`, complete or not at all.

    Args:
        progress: called with (done, in all), in thousandths.

    Raises:
        ConfigError: `out` exists and is not an empty directory, or cannot be made.
        CheckpointError: the checkpoint cannot be read, or changes meanwhile.
        OutputError: the disk is full.
    """
    importlib.import_module("pocketvlm.export.onnx")  # or a clear error, before anything is written
    directory = resolve(checkpoint)
    with new_directory(out) as partial, unchanged(directory) as source:
        weights = _weights(directory, _between(progress, 0, 0.25))
        start = 0.0 if isinstance(weights, StoredWeights) else 0.25
        needed = _expected_size(weights.config, quantization)
        if shutil.disk_usage(partial).free < needed:
            raise OutputError(
                f"the bundle takes {needed / 1e9:.1f} GB, {partial.parent} has "
                f"{shutil.disk_usage(partial).free / 1e9:.1f} GB free",
                hint=f"Make room there, or name another folder (for the cache in {CACHE_VARIABLE}).",
            )
        made_of = PartOperators.of(operators)
        _write_graphs(_graphs(weights, quantization, made_of), partial, _between(progress, start, 1))
        copy_text_files(directory, partial, weights.config)
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        manifest = Manifest(quantization, source, files, made_of)
        manifest.write(partial)
    if progress:
        progress(1000, 1000)  # small tensors stand in the graphs and are not counted
    return manifest


def _between(progress: Progress | None, start: float, end: float) -> Progress | None:
    """A part of the work, as thousandths of all of it."""
    if progress is None:
        return None
    return lambda done, total: progress(round(1000 * (start + (end - start) * done / max(total, 1))), 1000)


def _weights(directory: ModelDirectory, progress: Progress | None) -> Weights:
    if directory.adapter is None and (stored := StoredWeights.open(directory)) is not None:
        return stored
    need("torch", "torch", "torch")  # which merges adapters, and reads 8-bit floats
    import torch

    from pocketvlm.model.checkpoint import load_model, stored_dtype
    from pocketvlm.model.model_weights import ModelWeights

    dtype = stored_dtype(directory.path)
    return ModelWeights(load_model(directory, dtype=dtype, merged_dtype=torch.float32, progress=progress))


def _graphs(weights: Weights, quantization: Quantization, operators: PartOperators) -> dict[str, Any]:
    from pocketvlm.export.onnx.compiled_decoder import CompiledDecoderGraph
    from pocketvlm.export.onnx.compiled_vision import CompiledVisionGraph
    from pocketvlm.export.onnx.decoder import DecoderGraph
    from pocketvlm.export.onnx.embedding import embedding_graph
    from pocketvlm.export.onnx.vision import VisionGraph

    vision = CompiledVisionGraph if operators.vision == "compiled" else VisionGraph
    decoder = CompiledDecoderGraph if operators.decoder == "compiled" else DecoderGraph
    return {
        "vision": vision(weights, quantization.vision).build(),
        "embedding": embedding_graph(weights, half=quantization.head != "fp32"),
        "decoder": decoder(weights, quantization.decoder, quantization.head).build(),
    }


def _expected_size(config: ModelConfig, quantization: Quantization) -> int:
    counts = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    decoder = sum(count for name, count in counts.items() if name.startswith("language_model."))
    vision, table = sum(counts.values()) - decoder, counts["language_model.embed_tokens.weight"]
    layers = decoder - table
    embedding = 4 if quantization.head == "fp32" else 2
    parts = ((vision, quantization.vision), (layers, quantization.decoder), (table, quantization.head))
    return int(sum(count * _BYTES[scheme] for count, scheme in parts) + table * embedding)


def _write_graphs(graphs: dict[str, Any], directory: Path, progress: Progress | None) -> None:
    import onnx_ir as ir

    initializers = (value.const_value for graph in graphs.values() for value in graph.graph.initializers.values())
    total, done = sum(tensor.nbytes for tensor in initializers), 0
    for name in GRAPHS:
        graph = graphs.pop(name)

        def count(tensor: Any, _: Any) -> None:
            nonlocal done
            done += tensor.nbytes
            if progress:
                progress(done, total)

        ir.save(graph, directory / f"{name}.onnx", external_data=f"{name}.data", callback=count, max_workers=1)
        del graph
        gc.collect()  # nodes and values point at each other
