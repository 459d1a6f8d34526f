"""The loop: examples → losses → gradients → steps. `Trainer.step` is the place to start reading."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketvlm.errors import EngineError, PromptError
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.averaging import MovingAverage
from pocketvlm.training.batches import micro_batches
from pocketvlm.training.checkpoints import Checkpoints
from pocketvlm.training.data.order import epoch_length
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.examples import Example
from pocketvlm.training.feed import Found, Steps, watched_workers
from pocketvlm.training.interrupts import StopRequest
from pocketvlm.training.memory import peak_memory
from pocketvlm.training.objectives import Objective
from pocketvlm.training.optimisers import Optimiser, make_optimiser
from pocketvlm.training.precision import autocast_dtype
from pocketvlm.training.processes import Processes
from pocketvlm.training.schedules import HalfCosine, Schedule
from pocketvlm.training.settings import TuneSettings

logger = logging.getLogger(__name__)
_MOST_IDLE = 50  # steps
_SMOOTHING = 0.95


class TrainingError(EngineError):
    """A run cannot go on."""


@dataclass(frozen=True)
class Report:
    """One step.

    Attributes:
        step: of these, beginning with 1.
        steps: how many there will be; 0 where only the time is known.
        loss: mean over the learnt tokens (or pairs) of the step, over all processes.
        rate: learning rate.
        norm: of the gradients, before they were clipped.
        tokens: learnt in this step.
        tokens_s: all tokens of the step that went through the model, a second.
        seconds: since the run began, over all starts.
        left: seconds until its end, as far as one can say; infinite where it has none.
        memory: most bytes at a time so far, of the device, or of the process on a CPU.
        figures: what else the objective knows of its losses.
    """

    step: int
    steps: int
    loss: float
    rate: float
    norm: float
    tokens: int
    tokens_s: float
    seconds: float
    left: float
    memory: int
    figures: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """Args:
    model: with all that learns in the run marked by `requires_grad`; one around it with more to learn, such as heads
        for losses in between, has its `device` and `config`.
    feed: its samples.
    objective: what is minimised.
    out: folder of the run; checkpoints go there.
    identity: what a run that goes on must have as it was begun, beside its settings.
    validation: samples of which the mean loss is measured.
    optimiser: of the parameters that learn; that of the settings when None.
    schedule: when the run ends, and its rates until then; that of the settings when None.
    """

    def __init__(
        self,
        model: MiniCPMV,
        feed: Steps,
        objective: Objective,
        settings: TuneSettings,
        out: Path,
        *,
        identity: dict[str, Any] | None = None,
        validation: Steps | None = None,
        processes: Processes | None = None,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.model, self.feed, self.objective, self.settings, self.out = model, feed, objective, settings, out
        self.validation, self.processes = validation, processes or Processes()
        self.learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.learns.values())
        self.highest_rate = settings.rate(model.config.text)
        self.optimiser = optimiser or make_optimiser(self.parameters, settings, self.highest_rate)
        self.average = MovingAverage(model, settings.ema)
        self.schedule = schedule or _schedule(settings, feed)
        own = {**settings.identity(), "samples": len(feed.samples)}
        if optimiser is None and len(self.optimiser.param_groups) > 1:  # a run that was begun with one cannot go on
            own["what decays"] = "tensors of two axes and more"
        self.checkpoints = Checkpoints(out, {**own, **(identity or {})})
        if self.processes.rank == 0:
            self.checkpoints.tidy()
        self.processes.wait()
        self.progress = self.checkpoints.restore(self.learns, self.optimiser, self.average)
        self.stop, self._empty = StopRequest(), 0  # samples since anything could be learnt from one
        # Steps at the beginning in which no parameter had a gradient; None where one is known to have had one.
        self._idle: int | None = None if self.progress.tokens else 0
        self.dtype = autocast_dtype(model.device, model.config.text.hidden_size)

    def run(self, on_step: Callable[[Report], None], on_evaluation: Callable[[], None]) -> None:
        """Train to the end. Where it is interrupted it ends after a step, with a checkpoint.

        Raises:
            TrainingError: the loss is no number any more; or every sample is bad.
            SampleError: a bad sample, where the settings say that it stops the run.
            KeyboardInterrupt: by Ctrl-C or SIGTERM.
        """
        done, settings, schedule = self.progress, self.settings, self.schedule
        if schedule.share(done) >= 1:
            return
        count = max(0, schedule.steps - done.step)
        stream = self.feed.steps(done.step, count, settings.batch_size, self.processes.rank, self.processes.world)
        with self.stop.listening(), watched_workers():
            self._evaluate_if_due(on_evaluation)  # a run that was stopped in the middle of it
            began = time.perf_counter()
            for found in stream:
                report = self.step(found, began)
                if report is not None:
                    on_step(report)
                self._evaluate_if_due(on_evaluation)
                is_stopped = bool(self.processes.total(self.stop.is_set))
                if is_stopped or done.step % settings.save_every == 0:
                    self.save()
                if is_stopped:
                    raise KeyboardInterrupt
                if schedule.share(done) >= 1:
                    break
                began = time.perf_counter()

    def step(self, found: Sequence[Found], began: float | None = None) -> Report | None:
        """One step on what `Feed.steps` gives, by a clock that began when it was asked; now when None. A step of bad
        samples alone changes no weights, and has no report."""
        began, done = time.perf_counter() if began is None else began, self.progress
        torch.manual_seed(self.settings.seed * 1_000_003 + done.step)  # dropout is the same in a run that goes on
        examples = self._good(found)
        rate = self.highest_rate * self.schedule.factor(done)
        weight = self.processes.total(sum(self.objective.weight(example) for example in examples))
        if not weight:
            self._pass_over(began)
            return None
        self._empty = 0
        total, seen, sources = 0.0, 0, list[str]()
        self.model.train()
        for batch in self.objective.batches(examples, self.settings.micro_tokens, self.settings.micro_patches):
            with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
                losses = self.objective.losses(self.model, batch)
            self._check_numbers(losses, batch)
            loss = losses.sum() / weight
            if loss.requires_grad:  # samples without pictures say nothing to a tower that learns alone
                loss.backward()
            total += float(loss.detach())
            seen += sum(batch.lengths)
            sources += batch.sources
        self.processes.add_gradients(self.parameters)
        if self._idle is not None:
            self._check_gradients(self._idle)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if not torch.isfinite(norm):
            named = ", ".join(sources)
            raise TrainingError(f"step {done.step + 1}: gradients are no numbers. Its samples: {named:.500}")
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        loss_mean = self.processes.total(total)
        spent = self.processes.mean(time.perf_counter() - began)  # one clock, by which all of them end
        done.step += 1
        self.average.update(done.step)
        done.seconds += spent
        done.tokens += int(weight)
        new = max(1 - _SMOOTHING, 1 / done.step)  # at first the mean of all
        done.loss = loss_mean if done.loss is None else (1 - new) * done.loss + new * loss_mean
        share = self.schedule.share(done)
        return Report(
            done.step,
            self.schedule.steps,
            loss_mean,
            rate,
            float(norm),
            int(weight),
            self.processes.total(seen) / spent,
            done.seconds,
            done.seconds * (1 / share - 1) if share else math.inf,
            peak_memory(self.model.device),
            self.objective.figures(),
        )

    def _pass_over(self, began: float) -> None:
        """Count a step without a sample that can be learnt from; an end of the run where a whole pass has none."""
        done = self.progress
        self._empty += self.settings.batch_size
        if self._empty >= len(self.feed.samples):
            raise TrainingError(f"step {done.step + 1} has no sample that anything can be learnt from")
        done.seconds += self.processes.mean(time.perf_counter() - began)
        done.step += 1

    def _evaluate_if_due(self, on_evaluation: Callable[[], None]) -> None:
        every, done = self.settings.eval_every, self.progress
        if every and done.step and done.step % every == 0 and done.evaluated != done.step:
            on_evaluation()
            done.evaluated = done.step

    def evaluate(self) -> float | None:
        """Mean loss of the validation samples, over their learnt tokens (or pairs), of the averaged weights where there
        are some; None without samples. The weights of the lowest loss so far are kept.

        Raises:
            TrainingError: all of them are bad.
            SampleError: one is, where the settings say that this stops the run.
        """
        if self.validation is None:
            return None
        self.model.eval()
        total = weight = 0.0
        good = (item for found in self.validation.all() for item in self._good([found]))
        with torch.no_grad(), self.average.applied():
            for batch in micro_batches(good, self.settings.micro_tokens, self.settings.micro_patches):
                with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    losses = self.objective.losses(self.model, batch)
                total += float(losses.sum())
                weight += len(losses)
            if not weight:
                raise TrainingError("there is no validation sample that anything can be measured with")
            loss, done = total / weight, self.progress
            if loss < (math.inf if done.best_loss is None else done.best_loss):
                done.best_loss, done.best_step = loss, done.step
                if self.settings.eval_every and self.processes.rank == 0:
                    self.checkpoints.save_best(self.learns)
        self.processes.wait()
        return loss

    def take_result(self) -> None:
        """Give the model the weights that the run is for: the averaged ones where there are some; those of the lowest
        validation loss where the settings say so."""
        self.average.apply()
        if self.settings.result == "best" and self.progress.best_step:
            self.checkpoints.restore_best(self.learns)

    def save(self) -> None:
        """Write a checkpoint, in the first process, with what all of them have met."""
        done = self.progress
        done.bad, done.cut = self.processes.united(done.bad), self.processes.united(done.cut)
        if self.processes.rank == 0:
            self.checkpoints.save(self.learns, self.optimiser, self.progress, self.average)
        self.processes.wait()

    def _good(self, found: Sequence[Found]) -> list[Any]:
        """What can be learnt from, or measured with; the rest is reported."""
        good: list[Any] = []
        for one in found:
            if not isinstance(one, SampleError):
                good.append(one)
                # A feed of another kind may give what has no answers to cut.
                self.progress.cut |= {part.source: part.cut for part in one if isinstance(part, Example) and part.cut}
                continue
            if self.settings.bad_samples == "stop":
                raise one
            if one.source not in self.progress.bad:
                logger.warning("skipped: %s", one)
            self.progress.bad[one.source] = str(one)
        return good

    def _check_numbers(self, losses: Tensor, batch: Any) -> None:
        if bool(torch.isfinite(losses).all()):
            return
        source = self.objective.source_of(batch, int((~torch.isfinite(losses)).nonzero()[0]))
        raise TrainingError(f"step {self.progress.step + 1}: the loss of {source} is no number")

    def _check_gradients(self, idle: int) -> None:
        """Everything that is to learn has a gradient: adapters beside layers that take no part would stay as they
        are. A step of text alone says nothing to a tower that learns alone, and so do many of them."""
        without = [n for n, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if len(without) < len(self.parameters):
            self._idle = None
            if without:
                logger.warning("%d tensors have no gradient in the first step, such as %s", len(without), without[0])
            return
        self._idle = idle + 1
        has_seen_all = self._idle * self.settings.batch_size >= len(self.feed.samples)
        if has_seen_all or self._idle in (_MOST_IDLE, self.schedule.steps):
            raise PromptError("nothing of the model would learn from these samples", hint="Name other parts to tune.")


def _schedule(settings: TuneSettings, feed: Steps) -> Schedule:
    steps = settings.steps or 0
    if not steps and not settings.minutes:
        steps = max(1, math.ceil(settings.epochs * epoch_length(feed.samples, 0) / settings.batch_size))
    return HalfCosine(steps, settings.minutes, settings.warmup)
