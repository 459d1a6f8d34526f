"""The files of a checkpoint's weights, and what their headers say: nothing here reads a weight."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pocketvlm.config import ModelConfig
from pocketvlm.errors import CheckpointError
from pocketvlm.model import diagnosis
from pocketvlm.model.names import our_name, published_name, published_shape
from pocketvlm.model.parameter_shapes import parameter_shapes
from pocketvlm.text_files import is_there, read_json

logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# Resident pages of a mapped file count as memory of the process, so the map is renewed after this many bytes.
REMAP_BYTES = 256 * 2**20
# Multi-token prediction: a further layer that drafts tokens. The reference leaves it out as well.
MTP = re.compile(r"(model\.)?(language_model\.)?mtp\.")

# What headers call the types that are not of floating point → what everybody else calls them.
_NO_FLOATS = {"BOOL": "bool", "C64": "complex64"} | {
    f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Place:
    """Where a parameter lies, and of which type it is there, as headers call it."""

    file: Path
    published: str
    kind: str


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
            with safe_open(file, framework="np") as handle:
                total += sum(math.prod(handle.get_slice(name).get_shape()) for name in used_names(handle))
        except (SafetensorError, OSError):
            raise diagnosis.of_unreadable(file) from None
    return total


def used_names(handle: Any) -> list[str]:
    """Names of the tensors of an open file without those of multi-token prediction."""
    return [name for name in handle.keys() if not MTP.match(name)]  # noqa: SIM118  # it is no mapping


def find_parameters(directory: Path, config: ModelConfig, files: Sequence[Path], without: str = "") -> dict[str, Place]:
    """Our name of every parameter → where it is, by the headers of `files`; what is left out is said.

    Args:
        without: prefix of our names of the parameters that the checkpoint may lack; "" for none.

    Raises:
        CheckpointError: tensors are missing, unexpected, of other shapes or not of floating point (all of them are
            listed), or a file cannot be read.
    """
    missing, found = parameter_shapes(config), dict[str, Place]()
    unexpected, misshapen, integers, unused = list[str](), list[str](), list[str](), 0
    for file in files:
        for published, shape, kind in _header(file):
            ours = our_name(published)
            if MTP.match(published):
                unused += 1
            elif published == "lm_head.weight" and config.text.tie_word_embeddings:
                # Some exporters write the tied head a second time; whether it is the same would cost reading both.
                logger.warning("%s: lm_head.weight is left out: config.json ties it to the embedding", directory)
            elif ours not in missing:
                unexpected.append(published)
            elif shape != (expected := published_shape(ours, missing.pop(ours), config)):
                misshapen.append(f"{published} {list(shape)} instead of {list(expected)}")
            elif kind in _NO_FLOATS:
                integers.append(f"{published} ({_NO_FLOATS[kind]})")
            else:
                found[ours] = Place(file, published, kind)
    if unused:
        logger.warning("%s: mtp.* tensors (%d) are left out: tokens are predicted one by one", directory, unused)
    if (directory / diagnosis.ADAPTER).is_file():
        logger.warning("%s has an adapter beside its weights, which is not applied", directory)
    lacking = [published_name(ours) for ours in missing if not (without and ours.startswith(without))]
    _complain(directory, lacking, unexpected, misshapen, integers)
    return found


def _header(file: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """(published name, shape, type) of all tensors of a file."""
    try:
        with safe_open(file, framework="np") as handle:
            entries = [(name, handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118  # it is no mapping
            return [(name, tuple(entry.get_shape()), str(entry.get_dtype())) for name, entry in entries]
    except (SafetensorError, OSError):
        raise diagnosis.of_unreadable(file) from None


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
