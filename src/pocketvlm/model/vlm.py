"""The whole model: tower → merger → decoder. `MiniCPMV.forward` is the place to start reading.

Shapes:  P patches of all views · N visual tokens of all views · T tokens of all sequences · D decoder hidden
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketvlm.config import ModelConfig
from pocketvlm.errors import PromptError
from pocketvlm.kernels.linear.choice import cpu_linears, is_available
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cpu_layers import use_cpu_layers
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.text.decoder import Decoder
from pocketvlm.model.vision.merger import Merger
from pocketvlm.model.vision.tower import VisionTower
from pocketvlm.model.vision.view_packing import ViewPacking, pack_views
from pocketvlm.views import View


def can_use_cpu_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `MiniCPMV.use_cpu_kernels` does anything there."""
    return device.type == "cpu" and dtype == torch.float32 and is_available()


@cache
def _pixel_scale(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both in units of a uint8. Kept: a copy from the host could not be part of a CUDA graph."""
    with torch.inference_mode(mode=False):
        return torch.tensor(mean, device=device) * 255.0, torch.tensor(std, device=device) * 255.0


def forget_constants() -> None:
    """Drop the tensors that are kept from one call to the next; they are made again when needed. To be called after
    the model was traced with tensors without values (`FakeTensorMode`), which would be kept like any other.
    """
    _pixel_scale.cache_clear()


class MiniCPMV(nn.Module):
    """MiniCPM-V 4.6: a tower, a merger and a decoder.

    Args:
        config: all shapes.
        pixel_mean, pixel_std: per channel, in units of the 0..1 range (0.5 each in the published model).
    """

    def __init__(
        self,
        config: ModelConfig,
        pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config)
        self.merger = Merger(config)
        self.language_model = Decoder(config.text)
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self._batches_prepared = False

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.norm.weight.dtype

    def use_cpu_kernels(self, progress: Callable[[int, int], None] | None = None) -> Self:
        """Switch to the layers of `model.cpu_layers`, in place. Such a model cannot be trained or saved.

        Args:
            progress: called with (layers packed, layers in all).
        """
        if can_use_cpu_kernels(self.device, self.dtype) and not any(cpu_linears(self)):
            use_cpu_layers(self.vision_tower, self.merger, self.language_model, progress)
        return self

    def prepare_batches(self) -> None:
        """Ready the decoder for several rows; called when several sequences first decode together."""
        if not self._batches_prepared:
            for linear in cpu_linears(self.language_model):
                linear.prepare_batches()
            self._batches_prepared = True

    def forward(
        self,
        input_ids_T: Tensor | NDArray[Any],
        batch: PackedBatch,
        features_ND: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Token ids [T] and the visual tokens they hold places for, to hidden states [T, D].

        Apply `logits` to the rows that are needed: over 248,094 entries it costs as much as a third of the layers.
        """
        x_TD = self.embed(input_ids_T, features_ND)
        return self.language_model(x_TD, batch.positions, batch, cache)

    def encode_views(self, patches: Tensor | NDArray[Any], views: Sequence[View]) -> Tensor:
        """All views of all pictures at once, each at its own rate.

        Args:
            patches: uint8 [P, patch, patch, 3], views one after the other, or already normalised floats [P, patch_dim].
            views: sizes in patches and rates; they may differ from view to view.

        Returns:
            [N, D] features, in the order of the views.
        """
        expected = sum(v.patches for v in views)
        if len(patches) != expected:
            raise PromptError(f"{len(patches)} patches were given for views of {expected}")
        if not views:
            return torch.empty(0, self.config.text.hidden_size, dtype=self.dtype, device=self.device)
        packing = pack_views(views, self.config.vision.positions_per_side, self.device)
        return self.encode_packed(torch.as_tensor(patches).to(self.device), packing)

    def encode_packed(self, patches: Tensor, packing: ViewPacking) -> Tensor:
        """The part of `encode_views` that is work of the device alone; a CUDA graph can hold it."""
        if patches.dtype == torch.uint8:
            patches = self.normalise(patches)
        tower = self.vision_tower(patches.to(self.dtype), packing)
        return self.merger(tower).index_select(0, packing.output_index)

    def normalise(self, patches: Tensor) -> Tensor:
        """uint8 [P, patch, patch, 3] to fp32 [P, patch_dim], on the patches' device: a quarter of the bytes travel."""
        mean, std = _pixel_scale(self.pixel_mean, self.pixel_std, patches.device)
        return ((patches.float() - mean) / std).flatten(1)

    def embed(self, input_ids_T: Tensor | NDArray[Any], features_ND: Tensor | None = None) -> Tensor:
        """Token embeddings [T, D] with the features put in the places held for pictures and video, in order."""
        input_ids_T = torch.as_tensor(input_ids_T).to(self.device)
        x_TD = self.language_model.embed_tokens(input_ids_T).to(self.dtype)
        if features_ND is None or not len(features_ND):
            return x_TD
        places = (input_ids_T == self.config.image_token_id) | (input_ids_T == self.config.video_token_id)
        return x_TD.masked_scatter(places.unsqueeze(-1), features_ND.to(x_TD.dtype))

    def logits(self, x_TD: Tensor) -> Tensor:
        """Hidden states [T, D] to scores [T, vocabulary]."""
        return self.language_model.logits(x_TD)
