"""Prompt-lookup decoding: what followed these tokens before may follow them again.

The newest tokens are looked up among the earlier ones, of the prompt and of the answer; what followed there is the
draft. One forward scores the whole draft, and tokens are chosen from the scores as ever; as long as they are those of
the draft, the next scores hold too. The answer is that of plain decoding, only its steps are fewer and wider.

A forward moves the recurrent states, which remember one place only, so they are kept before a draft. When a token is
not the drafted one, the states go back, and the tokens that stood go through the decoder once more, with the next step.

Source: prompt lookup decoding (Saxena 2023), in transformers as `prompt_lookup_num_tokens`.  Shapes: V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pocketvlm.engine.runners.base import Runner
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.cache.base import Cache, State
from pocketvlm.model.cache.memory import Array
from pocketvlm.model.segments import Segment

NGRAMS = (3, 2)  # newest tokens that must have stood together before; the longer is looked for first


class PromptLookup:
    """Drafts for the sequence in slot 0 of a cache, and goes back where a draft was wrong.

    Each step: `forward`, then `add` tokens as they are chosen from the scores, up to the first that was not drafted,
    then `settle`.

    Args:
        prompt: ids of the prompt.
        max_tokens: tokens of a draft, at most.
    """

    def __init__(self, prompt: Sequence[int], max_tokens: int) -> None:
        self.ids = np.array(prompt, np.int64)
        self.max_tokens = max_tokens
        # Chosen tokens that the cache does not hold yet, the newest last. More than one after a draft that failed.
        self.pending: list[int] = []
        self._scored = self._start = 0
        self._before: State | None = None

    def add(self, token: int) -> None:
        """Take a token that was chosen."""
        self.ids = np.append(self.ids, token)
        self.pending.append(token)

    def draft(self, max_tokens: int) -> list[int]:
        """Return what may come next, `max_tokens` tokens or fewer; nothing right after a draft that failed."""
        if len(self.pending) > 1:
            return []
        max_tokens = min(max_tokens, self.max_tokens)
        return next((found for n in NGRAMS if (found := self._following(n, max_tokens))), [])

    def _following(self, n: int, max_tokens: int) -> list[int]:
        """Return the tokens that followed when the newest `n` stood together the last time before."""
        if max_tokens <= 0 or len(self.ids) <= n:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(self.ids[:-1], n)
        matches = (windows == self.ids[-n:]).all(1).nonzero()[0]
        if not len(matches):
            return []
        first = int(matches[-1]) + n
        following: list[int] = self.ids[first : first + max_tokens].tolist()
        return following

    def forward(
        self, runner: Runner, cache: Cache, max_tokens: int, adapter: PlacedAdapter | None = None
    ) -> tuple[Array, list[int]]:
        """Return scores [1 + k, V] after the newest token and after each of the k tokens of a draft, and the draft.

        Args:
            max_tokens: tokens of the draft, at most.
            adapter: the one that the sequence follows.
        """
        drafted = self.draft(max_tokens)
        self._start, self._before = cache.lengths[0], cache.save_state(0) if drafted else None
        ids = np.array(self.pending + drafted, np.int64)
        self._scored = len(ids)
        cache.reserve(self._start + len(ids))
        batch = runner.batch([Segment(len(ids), self._start, adapter=adapter)])
        rows = range(len(self.pending) - 1, len(ids))
        return runner.forward(runner.embed(ids, None), batch, cache, rows), drafted

    def settle(self, cache: Cache) -> None:
        """Keep the states when all of the draft was chosen and one token more, else go back."""
        if len(self.pending) > self._scored:
            del self.pending[: self._scored]
        elif self._before is not None:
            cache.restore_state(0, self._before, self._start)
