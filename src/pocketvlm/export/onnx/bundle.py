"""Checkpoints → bundles: written beside their place and moved there when complete, or kept in the user's cache.

Weights are read from a memory map and quantised while they are written, a tensor at a time.
"""

from __future__ import annotations

import gc
import importlib
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from pocketvlm.bundle import FORMAT, GRAPHS, Manifest, Operators, PartOperators, Quantization
from pocketvlm.errors import CheckpointError, ConfigError, OutputError
from pocketvlm.export.model_files import copy_text_files
from pocketvlm.export.new_directory import PARTIAL, new_directory, unchanged
from pocketvlm.machine import CACHE_VARIABLE, cache_directory
from pocketvlm.model.checkpoint import load_model, stored_dtype
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.vlm import MiniCPMV

Progress = Callable[[int, int], None]

# Bytes a weight takes in a bundle, scales included; for the free space and the progress bar.
_BYTES = {"fp32": 4.0, "int8": 1.01, "int4": 0.54}


def cached_bundle(
    checkpoint: Path | ModelDirectory,
    quantization: Quantization,
    progress: Progress | None = None,
    operators: Operators | PartOperators = "standard",
) -> Path:
    """The bundle of this checkpoint in the cache, made now if it is not there, or is damaged or old.

    Processes that want the same one wait for the first.

    Raises:
        CheckpointError: the checkpoint cannot be read, or no bundle can be kept.
        OutputError: there is no room for the bundle.
    """
    directory = resolve(checkpoint)
    source = directory.fingerprint
    made_of = PartOperators.of(operators)
    parts = (quantization.vision, quantization.decoder, quantization.head, made_of.vision, made_of.decoder)
    try:
        root = cache_directory() / "onnx"
    except OSError as error:
        hint = f"Name a folder in {CACHE_VARIABLE}."
        raise CheckpointError(f"no bundle can be kept ({error.strerror})", hint=hint) from None
    place = root / f"{source}-{'-'.join(parts)}-f{FORMAT}"
    with suppress(OSError):  # a cache may be read-only; bundles get their names when they are whole
        if _is_whole(place, source):
            return place
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{place.name}.lock"):
            if _is_whole(place, source):
                return place
            for left in root.glob(f"{place.name}{PARTIAL}*"):  # of a process that was killed: the lock is ours
                shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
            write_bundle(directory, place, quantization, progress, made_of)
        _remove_older(root, source)
    except OSError as error:
        raise CheckpointError(
            f"no bundle can be kept in {root} ({error.strerror or error})",
            hint=f"Make room there, or name another folder in {CACHE_VARIABLE}.",
        ) from None
    return place


def _remove_older(root: Path, source: str) -> None:
    """Remove the bundles of a checkpoint in formats of before, each the size of a model, which nothing reads now."""
    for old in root.glob(f"{source}-*"):
        named = re.fullmatch(r".*-f(\d+)(\.lock)?", old.name)
        if named is None or int(named[1]) >= FORMAT:
            continue
        if named[2]:
            with suppress(OSError):  # another user's, in a folder that all share
                old.unlink()
        else:
            shutil.rmtree(old, ignore_errors=True)


def _is_whole(place: Path, source: str) -> bool:
    try:
        return Manifest.read(place).source == source
    except (CheckpointError, ConfigError):
        return False


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
    dtype = stored_dtype(directory.path)
    with new_directory(out) as partial, unchanged(directory) as source:
        model = load_model(directory, dtype=dtype, merged_dtype=torch.float32, progress=_between(progress, 0, 0.25))
        needed = _expected_size(model, quantization)
        if shutil.disk_usage(partial).free < needed:
            raise OutputError(
                f"the bundle takes {needed / 1e9:.1f} GB, {partial.parent} has "
                f"{shutil.disk_usage(partial).free / 1e9:.1f} GB free",
                hint=f"Make room there, or name another folder (for the cache in {CACHE_VARIABLE}).",
            )
        made_of = PartOperators.of(operators)
        graphs = _graphs(model, quantization, made_of)
        config = model.config
        del model  # from here on each graph holds its own weights, and lets them go when it is written
        _write_graphs(graphs, partial, _between(progress, 0.25, 1))
        copy_text_files(directory, partial, config)
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


def _graphs(model: MiniCPMV, quantization: Quantization, operators: PartOperators) -> dict[str, Any]:
    from pocketvlm.export.onnx.compiled_decoder import CompiledDecoderGraph
    from pocketvlm.export.onnx.compiled_vision import CompiledVisionGraph
    from pocketvlm.export.onnx.decoder import DecoderGraph
    from pocketvlm.export.onnx.embedding import embedding_graph
    from pocketvlm.export.onnx.vision import VisionGraph

    vision = CompiledVisionGraph if operators.vision == "compiled" else VisionGraph
    decoder = CompiledDecoderGraph if operators.decoder == "compiled" else DecoderGraph
    return {
        "vision": vision(model, quantization.vision).build(),
        "embedding": embedding_graph(model, half=quantization.head != "fp32"),
        "decoder": decoder(model, quantization.decoder, quantization.head).build(),
    }


def _expected_size(model: MiniCPMV, quantization: Quantization) -> int:
    vision = sum(p.numel() for part in (model.vision_tower, model.merger) for p in part.parameters())
    table = model.language_model.embed_tokens.weight.numel()
    layers = sum(p.numel() for p in model.language_model.parameters()) - table
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
        gc.collect()  # nodes and values point at each other, and at the weights that they were made from
