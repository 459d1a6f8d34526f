"""By what a beginning of a prompt is known: a hash of everything that decides what the decoder makes of it.

That is its tokens, the content of its pictures, and a salt for what is not in the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from pocketvlm.engine.caches.prefix_cache import Digest
from pocketvlm.engine.request import Request

_PICTURE = b"\xff" * 8  # no token has this id, so a picture's key cannot be taken for tokens


def prefix_digests(request: Request, points: Sequence[int]) -> list[Digest]:
    """A hash of the first n tokens, for each n of `points` (rising): of the tokens, and of each picture that begins
    among them. A point inside a picture's tokens covers all of it."""
    digest = hashlib.blake2b(len(request.salt).to_bytes(8, "little") + request.salt, digest_size=32)
    ids = request.input_ids
    starts = view_starts(request)
    found, done, view = [], 0, 0
    for point in points:
        while done < point:
            ends = starts[view] if view < len(starts) and starts[view] < point else point
            digest.update(ids[done:ends].numpy().tobytes())
            done = ends
            if view < len(starts) and starts[view] == done and done < point:
                digest.update(_PICTURE + request.view_keys[view])
                view += 1
                # Its own tokens follow with the rest: up to the next picture, or to the point.
                ends = min(starts[view] if view < len(starts) else point, point)
                digest.update(ids[done:ends].numpy().tobytes())
                done = ends
        found.append(digest.copy().digest())
    return found


def view_starts(request: Request) -> list[int]:
    """Where each view's run of placeholders begins."""
    if not request.views:
        return []
    places = torch.isin(request.input_ids, torch.tensor(request.placeholder_ids)).nonzero()[:, 0].tolist()
    starts, at = [], 0
    for view in request.views:
        starts.append(places[at])
        at += view.visual_tokens
    return starts
