"""A model's weights by our names, read when they are asked for: what files of other programs are made of.

Nothing is held: of a matrix some rows at a time come from the mapped files of a checkpoint, whatever their type, in
fp32. A checkpoint with an adapter is loaded and merged instead (`model.model_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pocketvlm.config import ModelConfig
from pocketvlm.errors import CheckpointError, MissingExtraError
from pocketvlm.model import diagnosis
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.names import import_array, published_shape
from pocketvlm.model.parameter_shapes import parameter_shapes
from pocketvlm.model.weight_files import REMAP_BYTES, Place, find_parameters, weight_files

_READABLE = {"F64", "F32", "F16", "BF16"}

Array = NDArray[np.float32]
Colours = tuple[float, float, float]


class Weights(Protocol):
    """The parameters of a model, which several threads may ask for at once. What they get is not theirs to change."""

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""

    @property
    def pixel_mean(self) -> Colours:
        """Of each channel, in units of the 0..1 range; `pixel_std` likewise."""

    @property
    def pixel_std(self) -> Colours: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter of this name."""

    def rows(self, name: str, start: int, stop: int) -> Array:
        """The entries from `start` to `stop` of the first dimension, which has them; no others are read."""

    def array(self, name: str) -> Array:
        """All of a parameter."""


class StoredWeights:
    """The weights of a checkpoint, on its disk.

    Args:
        places: of all parameters, by our names.
    """

    def __init__(
        self, config: ModelConfig, pixel_mean: Colours, pixel_std: Colours, places: Mapping[str, Place]
    ) -> None:
        self.config, self.pixel_mean, self.pixel_std = config, pixel_mean, pixel_std
        self._shapes, self._places = parameter_shapes(config), places
        self._file = _MappedFile()
        self._lock = Lock()

    @classmethod
    def open(cls, directory: ModelDirectory) -> StoredWeights | None:
        """Check names, shapes and types of all weights by the headers of their files; None where some are of a type
        that NumPy cannot be given, such as floats of 8 bits.

        Raises:
            CheckpointError: weights are missing, truncated, or of other names or shapes; every such name is listed.
            MissingExtraError: nothing here knows bfloat16.
        """
        try:
            import ml_dtypes as _ml_dtypes  # makes NumPy know bfloat16, which safetensors asks it for
        except ImportError:
            raise MissingExtraError("ml-dtypes", "onnx") from None
        del _ml_dtypes
        image = directory.image_config
        places = find_parameters(directory.path, directory.config, weight_files(directory.path))
        if not {place.kind for place in places.values()} <= _READABLE:
            return None
        return cls(directory.config, image.image_mean, image.image_std, places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter of this name."""
        return self._shapes[name]

    def array(self, name: str) -> Array:
        """All of a parameter."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> Array:
        """The entries from `start` to `stop` of the first dimension, which has them; no others are read.

        Raises:
            CheckpointError: the file has changed since it was opened, or cannot be read any more.
        """
        place, shape = self._places[name], published_shape(name, self.shape(name), self.config)
        with self._lock:
            stored = self._file.rows(place, start, stop)
        if stored.shape != (stop - start, *shape[1:]):
            hint = "Try again when it is complete."
            raise CheckpointError(f"{place.file} was written to while it was read", hint=hint)
        return _as_fp32(import_array(name, stored))


class _MappedFile:
    """One file at a time, mapped anew before much of it is resident."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._handle: Any = None
        self._read = 0

    def rows(self, place: Place, start: int, stop: int) -> NDArray[Any]:
        """A copy of some entries of the first dimension of a tensor, of the type and in the order of the file."""
        try:
            if place.file != self._path or self._read >= REMAP_BYTES:
                self._handle = None  # first, so that there are never two
                self._handle, self._path, self._read = safe_open(place.file, framework="np"), place.file, 0
            rows: NDArray[Any] = self._handle.get_slice(place.published)[start:stop]
        except (SafetensorError, OSError):
            self._path = None
            raise diagnosis.of_unreadable(place.file) from None
        self._read += rows.nbytes
        return rows


def _as_fp32(array: NDArray[Any]) -> Array:
    if array.dtype.name != "bfloat16":
        return np.ascontiguousarray(array, np.float32)
    # The upper half of an fp32 number is that number in bfloat16.
    wide = array.view(np.uint16).astype(np.uint32, order="C")
    wide <<= 16
    return wide.view(np.float32)
