"""Scores of the tokens that can win, made again from the embeddings where the head has only 4 bits.

A head that is tied to the embeddings exists twice in a bundle: in few bits, which every step reads as a whole, and as
the table of embeddings, of which it reads some rows. The best tokens by the first are scored by the second.

Shapes:  R rows of scores · V vocabulary · D hidden · G groups of tokens · C candidates
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CANDIDATES = 16  # of each row
GROUP = 64  # tokens of which only the best is looked at: the maximum of groups is found ten times as fast as a top-k


def candidates(scores_RV: Tensor, count: int = CANDIDATES) -> Tensor:
    """The `count` tokens of highest score in each row (all, where there are fewer), in no order: int64 [R, C]."""
    rows, vocabulary = scores_RV.shape
    groups = vocabulary // GROUP
    if groups <= count:
        return scores_RV.topk(min(count, vocabulary), sorted=False).indices
    # The best `count` tokens lie in the best `count` groups, or behind the last whole group.
    whole = groups * GROUP
    group_RC = scores_RV[:, :whole].unflatten(1, (groups, GROUP)).amax(2).topk(count, sorted=False).indices
    members = (group_RC.unsqueeze(2) * GROUP + torch.arange(GROUP)).flatten(1)
    rest = torch.arange(whole, vocabulary).expand(rows, -1)
    members = torch.cat([members, rest], 1)
    return members.gather(1, scores_RV.gather(1, members).topk(count, sorted=False).indices)


def rescore_best(scores_RV: Tensor, hidden_RD: Tensor, embeddings: Callable[[Tensor], Tensor]) -> None:
    """Put exact scores over those of the best tokens of each row.

    Args:
        hidden_RD: the states that the head was applied to.
        embeddings: of token ids [R, C], fp32 [R, C, D].
    """
    if not len(scores_RV):
        return
    best_RC = candidates(scores_RV)
    scores_RV.scatter_(1, best_RC, torch.einsum("rcd,rd->rc", embeddings(best_RC), hidden_RD))
