"""Where an answer stands: for each of its tokens the visual tokens that show it, and a head that asks for them.

Reading and looking up both come down to finding the next character in the picture. The loss of the answers alone leaves
it to the decoder to discover that; here the state in which the second half of its layers begins must point to the
place. Training only: the head is not published.

Shapes:  N visual tokens of all views · T tokens · R answer tokens · K pairs of an answer token and its visual token
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pocketvlm.processing.patches.slicing import SlicePlan
from pocketvlm.synthetic.sample import CharacterBox, ObjectBox, box_answer
from recipes.nano.cells import HALO, grids

WIDTH = 64  # of queries and keys


def places(
    tokens: Sequence[str],
    characters: Sequence[CharacterBox],
    objects: Sequence[ObjectBox],
    plan: SlicePlan,
    patch: int,
) -> list[list[int]] | None:
    """The visual tokens that show each token of an answer, as numbers in the picture; none for a token that is no print
    (a space).

    Args:
        tokens: text of the tokens of an answer, without its end.

    Returns:
        None where the answer is not printed, or stands in several places, and is not the box of an object. Of JSON each
        string is looked for by itself.
    """
    answer = "".join(tokens)
    for box in objects:
        if answer == box_answer(box.left, box.top, box.right, box.bottom, plan.image.height, plan.image.width):
            middle = _cells((box.left + box.right) / 2, (box.top + box.bottom) / 2, plan, patch)
            return [middle] * len(tokens)
    printed = "".join(box.character for box in characters)
    found: list[list[int]] = [[] for _ in tokens]
    is_json = answer[:1] in ("{", "[")
    for start, end in _strings(answer) if is_json else [(0, len(answer))]:
        place = _only_place("".join(answer[start:end].split()), printed, in_any_case=not is_json)
        if place is not None:
            for i, character in _characters(tokens, characters, start, end, place):
                x, y = (character.left + character.right) / 2, (character.top + character.bottom) / 2
                found[i] = _cells(x, y, plan, patch)
    return found if any(found) else None


def _strings(answer: str) -> list[tuple[int, int]]:
    """Where the strings of JSON begin and end."""
    return [match.span(1) for match in re.finditer(r'"([^"\\]+)"', answer)]


def _characters(
    tokens: Sequence[str], characters: Sequence[CharacterBox], start: int, end: int, place: int
) -> Iterator[tuple[int, CharacterBox]]:
    """The tokens between `start` and `end` of an answer, by their numbers, and the first character that each prints;
    the first of all of them is `characters[place]`."""
    began = 0
    for number, token in enumerate(tokens):
        ends = began + len(token)
        text = "".join(token[max(0, start - began) : max(0, end - began)].split())
        if text and ends > start:
            yield number, characters[place]
            place += len(text)
        began = ends


def _only_place(text: str, printed: str, *, in_any_case: bool) -> int | None:
    """Where `text` begins in what is printed; None where it does not or not only there."""
    for text_, printed_ in ((text, printed), (text.casefold(), printed.casefold()))[: 1 + in_any_case]:
        first = printed_.find(text_) if text_ else -1
        if first >= 0:
            return first if printed_.find(text_, first + 1) < 0 else None
    return None


def _cells(x: float, y: float, plan: SlicePlan, patch: int) -> list[int]:
    """The visual tokens of all views whose cell, or its halo, holds a point of the picture."""
    found, before = [], 0
    for view, grid in zip(plan.views, grids(plan, patch), strict=True):
        halo = HALO / (2 if view.downsample_mode == "16x" else 1)  # that of a part of the cell
        down, across = y * grid.down - grid.first_row, x * grid.across - grid.first_column
        for row in sorted({int((down + way) // 1) for way in (-halo, 0, halo)}):
            for column in sorted({int((across + way) // 1) for way in (-halo, 0, halo)}):
                if 0 <= row < grid.rows and 0 <= column < grid.columns:
                    found.append(before + row * grid.columns + column)
        before += grid.rows * grid.columns
    return found


class Pointer(nn.Module):
    """Queries from answer tokens, keys from visual tokens."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, WIDTH)
        self.key = nn.Linear(hidden, WIDTH, bias=False)

    def forward(
        self, states: Tensor, rows: Tensor, visual: Tensor, row_samples: Tensor, visual_samples: Tensor, pairs: Tensor
    ) -> Tensor:
        """The mean loss over the answer tokens that have a place: minus the logarithm of the probability of all their
        visual tokens together.

        Args:
            states: [T, D] of the decoder.
            rows: [R] where the answer tokens are predicted; visual: [N] where visual tokens stand.
            row_samples, visual_samples: [R], [N] number of the sample that each belongs to.
            pairs: [2, K] (place in `rows`, place in `visual`).
        """
        if not pairs.shape[1]:
            return states.sum() * 0
        asked, wanted = pairs[0].unique(return_inverse=True)
        queries, keys = self.query(states[rows[asked]]).float(), self.key(states[visual]).float()
        scores = queries @ keys.T * WIDTH**-0.5
        scores = scores.masked_fill(row_samples[asked, None] != visual_samples[None], -torch.inf)
        right = torch.full_like(scores, -torch.inf)
        right[wanted, pairs[1]] = scores[wanted, pairs[1]]
        return (scores.logsumexp(1) - right.logsumexp(1)).mean()
