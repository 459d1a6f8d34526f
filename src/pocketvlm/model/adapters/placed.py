"""Adapters as rows of one model follow them, and which rows that are at the moment.

Shapes:  K inputs · n outputs of one part of a joined product · R rank
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pocketvlm.model.adapters.lora import HEAD

if TYPE_CHECKING:
    from torch import Tensor

Rows: TypeAlias = "slice | Tensor"
ALL_ROWS = slice(None)


@dataclass(frozen=True, eq=False)
class PlacedPart:
    """The update of outputs `start` to `end` of one product, ready for rows.

    Attributes:
        a_RK, b_nR: on the model's device, in its type; the scale is in `b_nR`.
        factor_n: of DoRA: magnitude over the norm of the merged row.
    """

    start: int
    end: int
    a_RK: Tensor
    b_nR: Tensor
    factor_n: Tensor | None


@dataclass(frozen=True, eq=False)
class PlacedAdapter:
    """An adapter that rows of one model can follow.

    Attributes:
        digest: of its content; what was computed under it may be used again under the same one only.
        parts: by the path of the wrapped layer.
        touches_vision: whether features of pictures depend on it.
    """

    digest: str
    parts: Mapping[str, Sequence[PlacedPart]]
    touches_vision: bool

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        parts = (part for parts in self.parts.values() for part in parts)
        return sum(x.nbytes for part in parts for x in (part.a_RK, part.b_nR, part.factor_n) if x is not None)

    @property
    def touches_head(self) -> bool:
        return HEAD.removesuffix(".weight") in self.parts


class ActiveRows:
    """Says which rows of what is computed at the moment follow which adapter; all wrappers of a model share one."""

    def __init__(self) -> None:
        self.groups: Sequence[tuple[PlacedAdapter, Rows]] = ()

    @contextmanager
    def follow(self, groups: Sequence[tuple[PlacedAdapter, Rows]]) -> Iterator[None]:
        """In the block these rows follow these adapters, and all others none."""
        self.groups = groups
        try:
            yield
        finally:
            self.groups = ()
