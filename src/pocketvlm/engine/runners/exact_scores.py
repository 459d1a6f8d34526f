"""Scores of the tokens that can win, made again from the embeddings where the head has only 4 bits.

A head that is tied to the embeddings exists twice in a bundle: in few bits, which every step reads as a whole, and as
the table of embeddings, of which it reads some rows. The best tokens by the first are scored by the second.

Shapes:  R rows of scores · V vocabulary · D hidden · G groups of tokens · C candidates
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

CANDIDATES = 16  # of each row
GROUP = 64  # tokens of which only the best is looked at: the maximum of groups is found ten times as fast as a top-k


def candidates(scores_RV: Floats, count: int = CANDIDATES) -> Ids:
    """The `count` tokens of highest score in each row (all, where there are fewer), in no order: int64 [R, C]."""
    rows, vocabulary = scores_RV.shape
    groups = vocabulary // GROUP
    if groups <= count:
        return _best(scores_RV, count)
    # The best `count` tokens lie in the best `count` groups, or behind the last whole group.
    whole = groups * GROUP
    group_RC = _best(scores_RV[:, :whole].reshape(rows, groups, GROUP).max(2), count)
    members = (group_RC[:, :, None] * GROUP + np.arange(GROUP)).reshape(rows, -1)
    rest = np.broadcast_to(np.arange(whole, vocabulary), (rows, vocabulary - whole))
    members = np.concatenate([members, rest], 1)
    best = _best(np.take_along_axis(scores_RV, members, 1), count)
    return np.take_along_axis(members, best, 1)


def _best(values_RN: Floats, count: int) -> Ids:
    """Where the `count` largest of each row are (all, where there are fewer), in no order."""
    length = values_RN.shape[1]
    if length <= count:
        return np.broadcast_to(np.arange(length), values_RN.shape)
    return np.argpartition(values_RN, length - count, 1)[:, length - count :]


def rescore_best(scores_RV: Floats, hidden_RD: Floats, embeddings: Callable[[Ids], Floats]) -> None:
    """Put exact scores over those of the best tokens of each row.

    Args:
        hidden_RD: the states that the head was applied to.
        embeddings: of token ids [R, C], fp32 [R, C, D].
    """
    if not len(scores_RV):
        return
    best_RC = candidates(scores_RV)
    np.put_along_axis(scores_RV, best_RC, np.einsum("rcd,rd->rc", embeddings(best_RC), hidden_RD), 1)
