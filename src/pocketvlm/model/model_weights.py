"""The weights of a loaded model as `model.weights` has those of a checkpoint: for a model with an adapter in it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pocketvlm.config import ModelConfig
from pocketvlm.model.vlm import MiniCPMV


class ModelWeights:
    """The parameters of `model` as they are now, on whatever device."""

    def __init__(self, model: MiniCPMV) -> None:
        self.model = model

    @property
    def config(self) -> ModelConfig:
        """The model's shapes; an adapter of the head unties it."""
        return self.model.config

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Of each channel, in units of the 0..1 range."""
        return self.model.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Of each channel, in units of the 0..1 range."""
        return self.model.pixel_std

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the parameter of this name."""
        return tuple(self.model.get_parameter(name).shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Some entries of the first dimension; they may be the model's own."""
        return self._array(self.model.get_parameter(name)[start:stop])

    def array(self, name: str) -> NDArray[np.float32]:
        """All of a parameter; it may be the model's own."""
        return self._array(self.model.get_parameter(name))

    @staticmethod
    def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
        array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        return array
