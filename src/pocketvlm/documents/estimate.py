"""What answering all pages would cost, from a few of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Done
from pocketvlm.documents.pages import PageTask, pages_to_ask, request_of
from pocketvlm.errors import UnavailableError

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM

SAMPLES = 8


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    pages: that are not done yet.
    measured: how many of them were answered for the estimate; what they said is not kept.
    unanswered: how many were tried and could not be.
    prompt_tokens, output_tokens: of all of them together.
    seconds: with the model loaded.
    """

    pages: int
    measured: int
    unanswered: int
    prompt_tokens: int
    output_tokens: int
    seconds: float


def estimate(
    vlm: VLM, documents: Sequence[Document], done: Done, task: PageTask, *, concurrency: int, samples: int = SAMPLES
) -> Estimate:
    """Answer some pages, spread evenly, as many at a time as the run would, and multiply."""
    waiting = list(pages_to_ask(documents, done))
    count = min(samples, len(waiting))
    chosen = [waiting[len(waiting) * number // count] for number in range(count)]
    some = [request_of(key, document, task) for key, document in chosen]
    prompt = output = measured = 0
    if some:
        vlm.prepare([{"role": "user", "content": task.question}], task.options)  # as the run would
    began = time.perf_counter()
    for _, outcome in vlm.as_completed(some, ahead=concurrency):
        if isinstance(outcome, UnavailableError):
            raise outcome
        if not isinstance(outcome, Exception):
            measured += 1
            prompt += outcome[0].usage.prompt_tokens
            output += outcome[0].usage.completion_tokens
    factor = len(waiting) / max(count, 1)
    spent = time.perf_counter() - began
    return Estimate(
        len(waiting),
        measured,
        count - measured,
        round(prompt * factor),
        round(output * factor),
        round(spent * factor, 1),
    )
