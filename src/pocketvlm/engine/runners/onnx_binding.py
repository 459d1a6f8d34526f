"""The decoder session with our arrays as its inputs and outputs: nothing is copied, and caches are bound once.

Naming the hundred addresses of all caches to ONNX Runtime takes a tenth of a step: it is done again only when one
moved. Steps of all sequences and chunks of single prompts take turns, so a few bindings are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from pocketvlm.model.cache.base import Cache

MAX_BINDINGS = 8
Numbers = NDArray[Any]


class DecoderBinding:
    """Runs `session` (a bundle's decoder) on arrays of ours, all contiguous."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.bindings: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(self, inputs: Mapping[str, Numbers], outputs: Mapping[str, Numbers], cache: Cache, slots: slice) -> None:
        """Run one forward of the sequences in `slots`; `outputs` and the caches are written."""
        binding = self._binding(cache, slots)
        for name, array in inputs.items():
            binding.bind_input(name, *_address(array))
        for name, array in outputs.items():
            binding.bind_output(name, *_address(array))
        self.session.run_with_iobinding(binding)

    def _binding(self, cache: Cache, slots: slice) -> Any:
        """Return a binding that has the caches of these slots as inputs and outputs."""
        stores = {"key": cache.keys, "value": cache.values, "conv": cache.conv, "recurrent": cache.recurrent}
        addresses = (_pointer(array) for store in stores.values() for array in store.values())
        key = (slots.start, slots.stop, cache.slots, cache.capacity, *addresses)
        if (known := self.bindings.get(key)) is not None:
            self.bindings.move_to_end(key)
            return known
        binding = self.session.io_binding()
        for kind, store in stores.items():
            for layer, array in store.items():
                address = _address(array[slots])
                binding.bind_input(f"past_{kind}.{layer}", *address)
                binding.bind_output(f"present_{kind}.{layer}", *address)
        self.bindings[key] = binding
        if len(self.bindings) > MAX_BINDINGS:
            self.bindings.popitem(last=False)
        return binding


def _address(array: Numbers) -> tuple[str, int, type, tuple[int, ...], int]:
    return "cpu", 0, array.dtype.type, array.shape, _pointer(array)


def _pointer(array: Numbers) -> int:
    address: int = array.__array_interface__["data"][0]  # a third of the time of `array.ctypes.data`
    return address
