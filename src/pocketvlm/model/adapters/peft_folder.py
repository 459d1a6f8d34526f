"""Read a folder as PEFT writes it. It comes from strangers: nothing in it is run, no path in it is opened, and nothing
is read into memory that is larger than the model's own layers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pocketvlm.config import ModelConfig
from pocketvlm.errors import CheckpointError
from pocketvlm.model import diagnosis
from pocketvlm.model.adapters.lora import HEAD, Adapter, LowRankUpdate
from pocketvlm.model.adapters.names import PEFT_PREFIX, linear_shapes, split_key, weight_of
from pocketvlm.model.adapters.settings import ADAPTER_FILES, WEIGHTS, AdapterSettings, adapter_folder
from pocketvlm.model.fingerprint import fingerprint
from pocketvlm.model.names import PATCH_EMBEDDING, import_tensor
from pocketvlm.ranges import show

logger = logging.getLogger(__name__)

_PARTS = {False: {"lora_A", "lora_B"}, True: {"lora_A", "lora_B", "lora_magnitude_vector"}}
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_adapter(directory: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model of these shapes.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: it is no adapter, is damaged, asks for what is not honoured, or is for another model.
        ConfigError: its configuration cannot be read.
    """
    folder = adapter_folder(directory)
    settings, file = AdapterSettings.read(folder), folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as handle:
            found = _Keys(file, handle, settings, linear_shapes(config))
            digest = fingerprint(folder, ADAPTER_FILES)  # of files whose sizes are known to be right
            updates = {ours: found.update(ours) for ours in sorted(found.layers)}
    except (SafetensorError, OSError):
        raise diagnosis.of_unreadable(file) from None
    if not updates:
        raise CheckpointError(f"{file} has no tensors: the adapter changes nothing")
    return Adapter(folder, digest, updates, settings.base)


class _Keys:
    """Tensors of an open file, sorted by layer; everything about them that needs no values is checked here."""

    def __init__(self, file: Path, handle: Any, settings: AdapterSettings, shapes: Mapping[str, torch.Size]) -> None:
        self.file, self.handle, self.settings, self.shapes = file, handle, settings, shapes
        self.layers: dict[str, dict[str, str]] = {}  # by our name: part → key
        self.theirs: dict[str, str] = {}
        for key in handle.keys():  # noqa: SIM118  # it is no mapping
            self._sort(key)
        for ours, parts in self.layers.items():
            self._check(ours, parts)

    def _sort(self, key: str) -> None:
        if self._is_copy(key):
            logger.warning("%s: %.200s is left out: PEFT adds the base model's own", self.file, key)
            return
        split = split_key(key)
        if split is None or split[1].startswith("lora_embedding"):
            what = "a table of embeddings" if split else "no part of a LoRA"
            hint = "Train linear layers only, or merge it in PEFT: merge_and_unload() and save_pretrained()."
            raise CheckpointError(f"{self.file} has {show(key, 200)}, which is {what}", hint=hint)
        layer, part = split
        ours = weight_of(layer, self.shapes)
        if ours is None:
            hint = "Is it for another model?"
            raise CheckpointError(f"{self.file} is for {show(layer, 200)}, no linear layer of this model", hint=hint)
        if part in self.layers.setdefault(ours, {}):
            raise CheckpointError(f"{self.file} has {show(key, 200)} twice, under two names")
        self.layers[ours][part] = key
        self.theirs[ours] = layer

    def _is_copy(self, key: str) -> bool:
        """Whether it is the base's head or table of embeddings, which PEFT adds where the head has an update."""
        layer = key.removeprefix(PEFT_PREFIX).removesuffix(".weight").removesuffix(".base_layer")
        is_table = layer == "model.language_model.embed_tokens" or (layer == "lm_head" and ".base_layer." in key)
        return is_table and [*self.handle.get_slice(key).get_shape()] == [*self.shapes[HEAD]]

    def _check(self, ours: str, parts: Mapping[str, str]) -> None:
        expected, layer = _PARTS[self.settings.use_dora], self.theirs[ours]
        if parts.keys() != expected:
            names = ", ".join(sorted(expected - parts.keys())) or ", ".join(sorted(parts.keys() - expected))
            what = "is missing" if expected - parts.keys() else "is there, although use_dora is not"
            raise CheckpointError(f"{names} of {show(layer, 200)} {what} in {self.file}")
        outputs, inputs = self.shapes[ours]
        rank = self.settings.rank_of(layer)
        if rank > max(outputs, inputs):
            raise CheckpointError(f"{show(layer, 200)} in {self.file} has rank {rank}, over the layer's own size")
        for part, key in parts.items():
            stored = self.handle.get_slice(key)
            if stored.get_dtype() not in _FLOATS:
                raise CheckpointError(f"{show(key, 200)} in {self.file} is {stored.get_dtype()}, expected floats")
            shape = [*stored.get_shape()]
            wanted = {"lora_A": [rank, inputs], "lora_B": [outputs, rank], "lora_magnitude_vector": [outputs]}[part]
            if _flat(shape, len(wanted), ours) != wanted:
                hint = f"Its rank is {rank} by adapter_config.json; is it for a model of another size?"
                raise CheckpointError(f"{show(key, 200)} in {self.file} is {shape}, expected {wanted}", hint=hint)

    def update(self, ours: str) -> LowRankUpdate:
        """Read one layer's tensors."""
        parts = {part: self._read(ours, part, key) for part, key in self.layers[ours].items()}
        scale = self.settings.scale_of(self.theirs[ours])
        return LowRankUpdate(parts["lora_A"], parts["lora_B"], scale, parts.get("lora_magnitude_vector"))

    def _read(self, ours: str, part: str, key: str) -> Tensor:
        tensor: Tensor = self.handle.get_tensor(key).float()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{show(key, 200)} in {self.file} has values that are no numbers")
        if tensor.dim() == 4 and part == "lora_A":
            return import_tensor(ours, tensor).contiguous()
        return tensor.flatten() if part == "lora_magnitude_vector" else tensor.flatten(1)


def _flat(shape: list[int], dimensions: int, ours: str) -> list[int]:
    """The shape as of a linear layer: over patches PEFT stores the parts of a convolution."""
    if ours != PATCH_EMBEDDING or len(shape) != 4:
        return shape
    return [math.prod(shape)] if dimensions == 1 else [shape[0], math.prod(shape[1:])]
