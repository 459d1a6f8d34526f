"""The decoder session with our tensors as its inputs and outputs: nothing is copied, and caches are bound once.

Naming the hundred addresses of all caches to ONNX Runtime takes a tenth of a step: it is done again only when one
moved. Steps of all sequences and chunks of single prompts take turns, so a few bindings are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketvlm.model.cache.base import Cache

MAX_BINDINGS = 8
_NUMPY = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32}


class DecoderBinding:
    """Runs `session` (a bundle's decoder) on tensors of ours, all contiguous and on the CPU."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.bindings: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.nowhere = torch.zeros(1)  # an empty tensor has no address, and one is asked for

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], cache: Cache, slots: slice) -> None:
        """Run one forward of the sequences in `slots`; `outputs` and the caches are written."""
        binding = self._binding(cache, slots)
        for name, tensor in inputs.items():
            binding.bind_input(name, *self._address(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *self._address(tensor))
        self.session.run_with_iobinding(binding)

    def _binding(self, cache: Cache, slots: slice) -> Any:
        """Return a binding that has the caches of these slots as inputs and outputs."""
        stores = {"key": cache.keys, "value": cache.values, "conv": cache.conv, "recurrent": cache.recurrent}
        addresses = (tensor.data_ptr() for store in stores.values() for tensor in store.values())
        key = (slots.start, slots.stop, cache.slots, cache.capacity, *addresses)
        if (known := self.bindings.get(key)) is not None:
            self.bindings.move_to_end(key)
            return known
        binding = self.session.io_binding()
        for kind, store in stores.items():
            for layer, tensor in store.items():
                address = self._address(tensor[slots])
                binding.bind_input(f"past_{kind}.{layer}", *address)
                binding.bind_output(f"present_{kind}.{layer}", *address)
        self.bindings[key] = binding
        if len(self.bindings) > MAX_BINDINGS:
            self.bindings.popitem(last=False)
        return binding

    def _address(self, tensor: Tensor) -> tuple[str, int, type, torch.Size, int]:
        return "cpu", 0, _NUMPY[tensor.dtype], tensor.shape, tensor.data_ptr() or self.nowhere.data_ptr()
