"""An answer as it is generated: pieces of its text, or everything that is new in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from pocketvlm.api.answers import Answer, Delta
from pocketvlm.api.job import Job
from pocketvlm.api.shared_engine import SharedEngine, refuse_to_travel
from pocketvlm.errors import PromptError


class Stream:
    """Iterate over it for pieces of the first answer's text, or over `deltas()` for reasoning, log probabilities and
    the other answers too; what was read in one way does not come again in the other. One that is not read to its end
    is given up with its object.
    """

    def __init__(self, engine: SharedEngine, job: Job) -> None:
        self._engine, self._job = engine, job
        engine.submit(job)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while (delta := self._next()) is not None:
            if delta.text and delta.index == 0:
                return delta.text
        raise StopIteration

    def deltas(self) -> Iterator[Delta]:
        """All that is new, of all `n` answers, as it comes. `EngineError` where the answers were lost."""
        while (delta := self._next()) is not None:
            yield delta

    def _next(self) -> Delta | None:
        job = self._job
        while not job.deltas and not job.is_done:
            self._engine.advance(job)
        if not job.deltas:
            self._engine.settle()
        if job.deltas:
            return job.deltas.popleft()
        if job.error is not None:
            raise job.error
        return None

    def close(self) -> None:
        """Give the answer up."""
        if not self._job.is_done:
            self._engine.give_up(self._job)

    def __reduce__(self) -> NoReturn:
        refuse_to_travel(self)

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; `PromptError` while some of it is still to come."""
        if not self._job.is_done:
            raise PromptError("the answer is not complete yet", hint="Iterate over the stream first.")
        return self._job.answer()
