"""What a request's prompt looks like to the engine: where its views stand, where it may be cut, how prefixes are known.

A prefix is known by a hash of everything that decides what the decoder makes of it: its tokens, the content of its
pictures, and a salt for what is not in the prompt. `PromptLayout.of` is called once for each request.

Shapes:  S prompt tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pocketvlm.views import View

Digest = bytes

_PICTURE = b"\xff" * 8  # no token has this id, so a picture's key cannot be taken for tokens


@dataclass(frozen=True)
class PromptLayout:
    """Says what is fixed about a prompt from the start.

    Attributes:
        starts, ends: of each view's run of placeholders, in tokens from the beginning of the prompt.
        digests: of the prefixes that may be in the prefix cache, from the shortest to the longest.
        cuts: the prefixes that are kept once they are computed: length to digest, rising.
    """

    starts: Sequence[int]
    ends: Sequence[int]
    digests: Sequence[Digest]
    cuts: Mapping[int, Digest]

    @classmethod
    def of(
        cls,
        input_ids: NDArray[np.int64],
        views: Sequence[View] = (),
        view_keys: Sequence[bytes] = (),
        *,
        placeholder_ids: Sequence[int] = (),
        branch_points: Sequence[int] = (),
        salt: bytes = b"",
        min_cut: int = 1,
        max_cuts: int = 8,
    ) -> Self:
        """Find out what a prompt looks like; the arguments are `Request`'s and `SchedulerConfig`'s.

        Args:
            input_ids: int64 [S].
            branch_points: lengths of prefixes that other prompts may share, rising; none where nothing is kept.
        """
        starts = view_starts(input_ids, views, placeholder_ids)
        ends = [start + view.visual_tokens for start, view in zip(starts, views, strict=True)]
        points = [point for point in branch_points if 0 < point < len(input_ids)]
        digests = prefix_digests(input_ids, points, starts, view_keys, salt) if points else []
        distance = max(min_cut, len(input_ids) // max_cuts)
        return cls(starts, ends, digests, _choose_cuts(points, digests, distance))

    def views_in(self, start: int, end: int) -> list[int]:
        """Return the indices of the views that have placeholders among the tokens from `start` to `end`."""
        spans = enumerate(zip(self.starts, self.ends, strict=True))
        return [i for i, (first, last) in spans if max(first, start) < min(last, end)]

    def next_cut(self, start: int, end: int) -> int:
        """Return the first cut between `start` and `end`, or `end`."""
        return next((cut for cut in self.cuts if start < cut < end), end)


def view_starts(input_ids: NDArray[np.int64], views: Sequence[View], placeholder_ids: Sequence[int]) -> list[int]:
    """Return where each view's run of placeholders begins."""
    if not views:
        return []
    positions: list[int] = np.flatnonzero(np.isin(input_ids, placeholder_ids)).tolist()
    starts, at = [], 0
    for view in views:
        starts.append(positions[at])
        at += view.visual_tokens
    return starts


def prefix_digests(
    input_ids: NDArray[np.int64],
    points: Sequence[int],
    starts: Sequence[int],
    view_keys: Sequence[bytes],
    salt: bytes,
) -> list[Digest]:
    """Hash the first n tokens, for each n of `points` (rising): the tokens, and each picture that begins among them.
    A point inside a picture's tokens covers all of it."""
    digest = hashlib.blake2b(len(salt).to_bytes(8, "little") + salt, digest_size=32)
    digests, done, view = [], 0, 0
    for point in points:
        while done < point:
            ends = starts[view] if view < len(starts) and starts[view] < point else point
            digest.update(input_ids[done:ends].tobytes())
            done = ends
            if view < len(starts) and starts[view] == done and done < point:
                digest.update(_PICTURE + view_keys[view])
                view += 1
                # Its own tokens follow with the rest: up to the next picture, or to the point.
                ends = min(starts[view] if view < len(starts) else point, point)
                digest.update(input_ids[done:ends].tobytes())
                done = ends
        digests.append(digest.copy().digest())
    return digests


def _choose_cuts(points: Sequence[int], digests: Sequence[Digest], distance: int) -> dict[int, Digest]:
    """Choose the prefixes that are kept: the longest always, others at some distance from each other."""
    cuts: dict[int, Digest] = {}
    last = 0
    for point, digest in zip(points, digests, strict=True):
        if point - last >= distance or point == points[-1]:
            cuts[point] = digest
            last = point
    return cuts
