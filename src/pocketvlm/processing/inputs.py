"""What processing hands to the model: token ids, patches and the views they belong to, counted before launch.

Shapes: S prompt tokens, P patches of all views, p patch_size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import PromptError
from pocketvlm.views import View


@dataclass(frozen=True, slots=True, eq=False)
class ModelInputs:
    """One prompt, ready for the model.

    Attributes:
        input_ids: int64 [S]. Each view has one unbroken run of placeholder ids, as long as its visual tokens.
        patches: uint8 [P, p, p, 3], views one after the other; P = 0 without media.
        views: the views in order of their runs in `input_ids`.
        placeholder_ids: ids in `input_ids` whose embeddings the features replace, in order of the runs.

    Raises:
        PromptError: placeholders, views and patches do not match one another.
    """

    input_ids: NDArray[np.int64]
    patches: NDArray[np.uint8]
    views: tuple[View, ...]
    placeholder_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.input_ids.ndim != 1 or self.input_ids.dtype != np.int64:
            raise PromptError(f"input_ids is {self.input_ids.dtype} {list(self.input_ids.shape)}, expected int64 [S]")
        runs = self._runs()
        wanted = [view.visual_tokens for view in self.views]
        if runs != wanted:
            raise PromptError(f"the prompt has runs of {runs} placeholders for views of {wanted} visual tokens")
        patches = sum(view.patches for view in self.views)
        if self.patches.dtype != np.uint8 or self.patches.ndim != 4 or self.patches.shape[0] != patches:
            raise PromptError(
                f"patches is {self.patches.dtype} {list(self.patches.shape)}, "
                f"expected uint8 [{patches}, patch, patch, 3] for {len(self.views)} views"
            )

    @property
    def visual_tokens(self) -> int:
        """Placeholders in `input_ids`: the tokens that are pictures."""
        return sum(view.visual_tokens for view in self.views)

    def _runs(self) -> list[int]:
        """Lengths of the unbroken runs of one placeholder id, in order."""
        starts = np.flatnonzero(np.diff(self.input_ids, prepend=self.input_ids[:1] - 1))
        lengths = np.diff(starts, append=len(self.input_ids))
        runs: list[int] = lengths[np.isin(self.input_ids[starts], self.placeholder_ids)].tolist()
        return runs
