"""An engine that several threads share, without a thread of its own: whoever waits for an answer runs the next step.

A step brings all jobs further, so that streams that are read in turns, or from several threads, run together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from pocketvlm.api.job import Job
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Output, Request
from pocketvlm.errors import EngineError
from pocketvlm.machine import OwnProcess

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


class SharedEngine:
    """Jobs in, their deltas into `Job.deltas`. In a forked child every call raises `RuntimeError`.

    Attributes:
        progress: called with (what, done, in all) during long prefills; None is silent.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.process = engine, OwnProcess()
        self.progress: Progress | None = None
        self._is_reading = False  # as last reported
        self._jobs: dict[Request, Job] = {}
        self._given_up: deque[Job] = deque()
        self._one_at_a_time = threading.Lock()

    def submit(self, job: Job) -> None:
        """Hand a job in. Where the engine's queue is full, run steps until there is room."""
        while not self.try_submit(job):
            self.step()

    def try_submit(self, job: Job) -> bool:
        """Hand a job in, if the engine's queue has room."""
        self.process.check()  # before a lock that nobody would open
        with self._one_at_a_time:
            self._abort_given_up()
            if not self.engine.has_room:
                return False
            job.request.arrival = time.monotonic()
            self._jobs[job.request] = job
            try:
                self.engine.add(job.request)
            except BaseException:
                del self._jobs[job.request]
                raise
            return True

    def step(self) -> None:
        """One step of the engine, if it has work, for whichever jobs it runs."""
        self.process.check()
        with self._one_at_a_time:
            self._abort_given_up()
            if self.engine.has_work:
                self._step()

    def advance(self, job: Job) -> None:
        """One step of the engine, unless another thread's step has brought `job` further meanwhile."""
        self.process.check()
        with self._one_at_a_time:
            self._abort_given_up()
            if not (job.is_done or job.deltas):
                if self.engine.has_work:
                    self._step()
                else:
                    job.error = EngineError("the engine lost this request")
        if self.progress is not None:
            self._report(job, self.progress)

    def settle(self) -> None:
        """Wait until no thread is in a step: one that has noted the end of an answer has handed its last words out."""
        self.process.check()
        with self._one_at_a_time:
            pass

    def _report(self, job: Job, progress: Progress) -> None:
        """Say how far the prompt is read; what was begun ends with a report of all of it, whatever came of the job."""
        first, total = job.request.sequences[0], job.request.prompt_tokens
        if not (job.is_done or first.output_ids):
            self._is_reading = True
            progress("Reading the prompt", min(first.computed, total - 1), total)
        elif self._is_reading:
            self._is_reading = False
            progress("Reading the prompt", total, total)

    def give_up(self, job: Job) -> None:
        """Nobody waits for this one any more. It ends with the next step: this may be called in the middle of one."""
        self._given_up.append(job)

    def _abort_given_up(self) -> None:
        while self._given_up:
            lost = self._given_up[0]  # stays there until it is done: an interrupt may come in between
            self.engine.abort(lost.request)
            self._jobs.pop(lost.request, None)
            self._given_up.popleft()

    def _step(self) -> None:
        """Run a step and hand its outputs out, one by one: what goes wrong with one costs its job, and an interrupt
        leaves the others for the next step."""
        self.engine.run_step()
        outputs = self.engine.outputs
        while outputs:
            output = outputs[0]
            job = self._jobs.get(output.request)
            try:
                if job is not None:
                    self._hand_over(job, output)
                outputs.popleft()
            except BaseException as error:
                is_fault = isinstance(error, Exception)  # of this job alone; all else is for whoever runs the step
                if outputs and outputs[0] is output:
                    outputs.popleft()
                if job is not None:
                    why = f"its answer could not be read ({type(error).__name__})" if is_fault else "interrupted"
                    job.error = job.error or EngineError(why)
                    self._jobs.pop(job.request, None)
                    self.give_up(job)
                if not is_fault:
                    raise
                logger.exception("an answer was lost")

    def _hand_over(self, job: Job, output: Output) -> None:
        if (delta := job.take(output)) is not None:
            job.deltas.append(delta)
            if delta.finish_reason is not None and output.finish_reason is None:
                self.engine.finish(output.request, output.index)
        if job.is_done:
            self._jobs.pop(output.request, None)
            if job.error is not None:
                self.engine.abort(job.request)


def refuse_to_travel(thing: object) -> NoReturn:
    """For `__reduce__`, which pickling and copying call."""
    raise TypeError(
        f"a {type(thing).__name__} holds weights and caches of this process and is neither pickled nor copied. "
        "Call pocketvlm.load in the worker or actor itself, with the model's name."
    )
