"""Which views are worth 4x: how much fine print each one holds, and the choice within a budget of visual tokens.

Takes the uint8 patches of planned 16x views and gives the same views, some of them at 4x. Only pixels decide: the same
picture always gets the same rates, whatever is asked about it and whatever else is in the request.

The score counts patches full of thin strokes. A pixel lies on a stroke when it is darker, or lighter, than both pixels
two steps away: so are strokes of one to three pixels; edges, gradients and the inside of bold letters are not. A stroke
counts once, however wide, so the smaller the print the more there are. Each comparison is of the mean of three pixels
along the stroke, which noise rarely survives, and a patch counts only if it has strokes in both directions, which rules
and stripes have not. `benchmarks/auto_rates.py` compares it with other scores.

Shapes: P patches of one view, p patch_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from pocketvlm.views import View

_CONTRAST = 12  # grey levels between a stroke and the ground
_SHARE = 120  # a patch counts if strokes across times strokes down is at least one part in 120 of (places looked at)²
_FLOOR = 128  # a view with fewer than one patch in so many that count is never raised


def count_fine_patches(patches: NDArray[np.uint8]) -> int:
    """How many patches of a view hold fine print: uint8 [P, p, p, 3] → 0 to P. 0 for patches under six pixels."""
    count, side = patches.shape[:2]
    if side < 6 or not count:
        return 0
    red, green, blue = (patches[..., channel].reshape(-1) for channel in range(3))
    grey = green.astype(np.int16)  # red + 2 green + blue: four times the brightness
    grey *= 2
    grey += red
    grey += blue
    # All patches are one flat row, which numpy is fast on; what runs over an edge of a patch is not counted.
    inside = np.zeros((side, side), np.float32)
    inside[: side - 2, 1 : side - 4] = 1
    across = _strokes(grey, along=side, step=1).reshape(count, -1) @ inside.reshape(-1)
    down = _strokes(grey, along=1, step=side).reshape(count, -1) @ np.ascontiguousarray(inside.T).reshape(-1)
    # Small whole numbers are exact in float32, whatever the order of the sum: the result is the same everywhere.
    looked_at = (side - 2) * (side - 5)
    return int(np.count_nonzero(across * down * _SHARE >= looked_at**2))


def _strokes(grey: NDArray[np.int16], along: int, step: int) -> NDArray[np.float32]:
    """1.0 two steps before a stroke begins, else 0.0, as long as `grey`.

    Args:
        along: distance of neighbours along the stroke.
        step: distance of neighbours across it.
    """
    mean = grey[: -2 * along] + grey[along:-along]
    mean += grey[2 * along :]
    change = mean[2 * step :] - mean[: -2 * step]
    least = _CONTRAST * 4 * 3
    rise, fall = change > least, change < -least
    dark, light = fall[: -2 * step] & rise[2 * step :], rise[: -2 * step] & fall[2 * step :]
    begins = dark[step:] > dark[:-step]
    begins |= light[step:] > light[:-step]
    out = np.zeros(len(grey), np.float32)
    out[step : step + len(begins)] = begins
    return out


def choose_rates(
    pictures: Sequence[Sequence[View]], scores: Sequence[Sequence[int]], token_budget: float
) -> list[tuple[View, ...]]:
    """Raise views to 4x, those with the most fine print first, as long as the budget lasts.

    The order is by score, then by place, and the first view that the budget cannot pay ends it: so a larger budget only
    ever adds to what a smaller one raised. The overview of a sliced picture comes after all slices: it shows what they
    show, smaller. A view that is next to blank stays at 16x whatever the budget.

    Args:
        pictures: the 16x views of each picture, overview first: one picture, or the frames of a video, which share.
        scores: of these views, see `count_fine_patches`.
        token_budget: most visual tokens of all pictures, as a multiple of those they take now.
    """
    left = _extra_tokens(pictures, token_budget)
    order = sorted(
        (len(views) > 1 and i == 0, -scores[number][i], number, i)
        for number, views in enumerate(pictures)
        for i, view in enumerate(views)
        if scores[number][i] * _FLOOR >= view.patches
    )
    chosen = [list(views) for views in pictures]
    for _, _, number, i in order:
        left -= _cost(chosen[number][i])
        if left < 0:
            break
        chosen[number][i] = replace(chosen[number][i], downsample_mode="4x")
    return [tuple(views) for views in chosen]


def max_token_views(views: Sequence[View], token_budget: float) -> tuple[View, ...]:
    """The 16x views of one picture as they are when its pixels make `choose_rates` use the most tokens possible."""
    overview, *slices = views
    left, chosen = _extra_tokens([views], token_budget), []
    for raised_overview in (False, True):  # some slices may be blank, so the overview can be raised before the last one
        rest = left - _cost(overview) * raised_overview
        if rest >= 0:
            count = min(rest // _cost(slices[0]), len(slices)) if slices else 0
            raised = [raised_overview, *(i < count for i in range(len(slices)))]
            pairs = zip(views, raised, strict=True)
            chosen.append(tuple(replace(view, downsample_mode="4x") if up else view for view, up in pairs))
    return max(chosen, key=lambda option: sum(view.visual_tokens for view in option))


def _extra_tokens(pictures: Sequence[Sequence[View]], token_budget: float) -> int:
    """What may be spent beyond 16x. Decimal: 1.1 times 10 is 11 here, and not a little more or less."""
    tokens = sum(view.visual_tokens for views in pictures for view in views)
    return int(Decimal(repr(token_budget)) * tokens) - tokens


def _cost(view: View) -> int:
    """Tokens that raising a 16x view adds."""
    return replace(view, downsample_mode="4x").visual_tokens - view.visual_tokens
