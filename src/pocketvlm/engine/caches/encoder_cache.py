"""Features of views by their content: a picture that is asked about twice goes through the tower once.

Shapes:  n visual tokens of a view · D hidden
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from pocketvlm.model.cache.memory import Array


class EncoderCache:
    """Keeps features within `budget` bytes; what was not used for longest goes first, what is pinned stays.

    A request pins its views from its admission until their tokens have gone through the decoder. A view that two
    requests wait for is encoded for the first and there for the second.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used_bytes = budget, 0
        self.features: OrderedDict[bytes, Array] = OrderedDict()
        self.pins: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self.features

    def __getitem__(self, key: bytes) -> Array:
        """Return the features [n, D] of a view, which must be there."""
        self.features.move_to_end(key)
        return self.features[key]

    def add(self, key: bytes, features_ND: Array) -> None:
        if key in self.features:
            return
        self.features[key] = features_ND
        self.used_bytes += features_ND.nbytes
        self._shrink()

    def pin(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.pins[key] = self.pins.get(key, 0) + 1

    def unpin(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.pins[key] -= 1
            if not self.pins[key]:
                del self.pins[key]
        self._shrink()

    def clear(self) -> None:
        """Forget everything, pins too, whatever was counted: after a failure, when nobody needs any."""
        self.features.clear()
        self.pins.clear()
        self.used_bytes = 0

    def _shrink(self) -> None:
        if self.used_bytes <= self.budget:
            return
        for key in [key for key in self.features if key not in self.pins]:
            features = self.features.pop(key)
            self.used_bytes -= features.nbytes
            if self.used_bytes <= self.budget:
                return

    def check_integrity(self) -> None:
        assert self.used_bytes == sum(f.nbytes for f in self.features.values()), "bytes miscounted"
        assert all(count > 0 for count in self.pins.values()), "a pin without a reason"
