"""The loop: examples → losses → gradients → steps. `Trainer.step` is the place to start reading."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketvlm.errors import EngineError, PromptError
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.averaging import MovingAverage
from pocketvlm.training.batches import bucketed, micro_batches
from pocketvlm.training.checkpoints import Checkpoints
from pocketvlm.training.data.order import epoch_length
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.feed import Feed, Found
from pocketvlm.training.interrupts import StopRequest
from pocketvlm.training.memory import peak_memory
from pocketvlm.training.objectives import Objective
from pocketvlm.training.optimisers import make_optimiser
from pocketvlm.training.processes import Processes
from pocketvlm.training.settings import TuneSettings, factor

logger = logging.getLogger(__name__)
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
        left: seconds until its end, as far as one can say.
        memory: most bytes at a time so far, of the device, or of the process on a CPU.
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


class Trainer:
    """Args:
    model: with what learns marked by `requires_grad`.
    feed: its samples.
    objective: what is minimised.
    out: folder of the run; checkpoints go there.
    validation: samples of which the mean loss is measured.
    """

    def __init__(
        self,
        model: MiniCPMV,
        feed: Feed,
        objective: Objective,
        settings: TuneSettings,
        out: Path,
        *,
        identity: dict[str, Any] | None = None,
        validation: Feed | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.feed, self.objective, self.settings, self.out = model, feed, objective, settings, out
        self.validation, self.processes = validation, processes or Processes()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.highest_rate = settings.rate(model.config.text)
        self.optimiser = make_optimiser(self.parameters, settings, self.highest_rate)
        self.average = MovingAverage(model, settings.ema)
        self.steps = settings.steps or (
            0
            if settings.minutes
            else max(1, math.ceil(settings.epochs * epoch_length(feed.samples, 0) / settings.batch_size))
        )
        self.checkpoints = Checkpoints(out, {**settings.identity(), "samples": len(feed.samples), **(identity or {})})
        self.progress = self.checkpoints.restore(model, self.optimiser, self.average)
        self.stop = StopRequest()
        self.dtype = autocast_dtype(model)

    def run(self, on_step: Callable[[Report], None], on_evaluation: Callable[[], None]) -> None:
        """Train to the end. Where it is interrupted it ends after a step, with a checkpoint.

        Raises:
            TrainingError: the loss is no number any more; or every sample is bad.
            SampleError: a bad sample, where the settings say that it stops the run.
            KeyboardInterrupt: by Ctrl-C or SIGTERM.
        """
        done, settings = self.progress, self.settings
        if self._share() >= 1:
            return
        stream = self.feed.steps(
            done.step, max(0, self.steps - done.step), settings.batch_size, self.processes.rank, self.processes.world
        )
        with self.stop.listening():
            self._evaluate_if_due(on_evaluation)  # a run that was stopped in the middle of it
            for found in stream:
                on_step(self.step(found))
                self._evaluate_if_due(on_evaluation)
                is_stopped = bool(self.processes.total(self.stop.is_set))
                if is_stopped or done.step % settings.save_every == 0:
                    self.save()
                if is_stopped:
                    raise KeyboardInterrupt
                if self._share() >= 1:
                    break

    def step(self, found: Sequence[Found]) -> Report:
        """One step on what `Feed.steps` gives."""
        began, done = time.perf_counter(), self.progress
        torch.manual_seed(self.settings.seed * 1_000_003 + done.step)  # dropout is the same in a run that goes on
        examples = self._good(found)
        rate = self.highest_rate * self._rate()
        weight = self.processes.total(sum(self.objective.weight(example) for example in examples))
        if not weight:
            raise TrainingError(f"step {done.step + 1} has no sample that anything can be learnt from")
        total, seen = 0.0, 0
        self.model.train()
        for batch in bucketed(examples, self.settings.micro_tokens, self.settings.micro_patches):
            with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
                losses = self.objective.losses(self.model, batch)
            self._check_numbers(losses, batch)
            loss = losses.sum() / weight
            loss.backward()
            total += float(loss.detach())
            seen += sum(batch.lengths)
        self.processes.add_gradients(self.parameters)
        if done.step == 0:
            self._check_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if not torch.isfinite(norm):
            sources = ", ".join(one[0].source for one in examples)
            raise TrainingError(f"step {done.step + 1}: gradients are no numbers. Its samples: {sources:.500}")
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        loss_mean = self.processes.total(total)
        spent = time.perf_counter() - began
        done.step += 1
        self.average.update(done.step)
        done.seconds += spent
        done.tokens += int(weight)
        new = max(1 - _SMOOTHING, 1 / done.step)  # at first the mean of all
        done.loss = loss_mean if done.loss is None else (1 - new) * done.loss + new * loss_mean
        share = self._share()
        return Report(
            done.step,
            self.steps,
            loss_mean,
            rate,
            float(norm),
            int(weight),
            self.processes.total(seen) / spent,
            done.seconds,
            done.seconds * (1 / share - 1) if share else math.inf,
            peak_memory(self.model.device),
        )

    def _evaluate_if_due(self, on_evaluation: Callable[[], None]) -> None:
        every, done = self.settings.eval_every, self.progress
        if every and done.step and done.step % every == 0 and done.evaluated != done.step:
            on_evaluation()
            done.evaluated = done.step

    def evaluate(self) -> float | None:
        """Mean loss of the validation samples, over their learnt tokens (or pairs), of the averaged weights where there
        are some; None without samples. The weights of the lowest loss so far are kept."""
        if self.validation is None:
            return None
        self.model.eval()
        total = weight = 0.0
        good = (found for found in self.validation.all() if not isinstance(found, SampleError))
        with torch.no_grad(), self.average.applied():
            for batch in micro_batches(good, self.settings.micro_tokens, self.settings.micro_patches):
                with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    losses = self.objective.losses(self.model, batch)
                total += float(losses.sum())
                weight += len(losses)
            loss, done = total / weight if weight else math.nan, self.progress
            if loss < (math.inf if done.best_loss is None else done.best_loss):
                done.best_loss, done.best_step = loss, done.step
                if self.settings.eval_every and self.processes.rank == 0:
                    self.checkpoints.save_best(self.model)
        self.processes.wait()
        return loss

    def take_result(self) -> None:
        """Give the model the weights that the run is for: the averaged ones where there are some; those of the lowest
        validation loss where the settings say so."""
        self.average.apply()
        if self.settings.result == "best" and self.progress.best_step:
            self.checkpoints.restore_best(self.model)

    def save(self) -> None:
        """Write a checkpoint, in the first process."""
        if self.processes.rank == 0:
            self.checkpoints.save(self.model, self.optimiser, self.progress, self.average)
        self.processes.wait()

    def _share(self) -> float:
        """How much of the run is done, from 0 to 1."""
        if self.settings.minutes:
            share = self.progress.seconds / (60 * self.settings.minutes)
            if not self.settings.steps:
                return self.processes.total(min(1.0, share)) / self.processes.world
            return max(share, self.progress.step / self.steps)
        return self.progress.step / self.steps

    def _rate(self) -> float:
        if self.settings.minutes:
            share, warmup = self._share(), self.settings.warmup
            return min(1.0, (share + 1e-3) / warmup if warmup else 1.0, 0.5 * (1 + math.cos(math.pi * share)))
        return factor(self.progress.step, self.steps, self.settings.warmup)

    def _good(self, found: Sequence[Found]) -> list[Any]:
        """What can be learnt from; the rest is reported."""
        good = []
        for one in found:
            if not isinstance(one, SampleError):
                good.append(one)
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

    def _check_gradients(self) -> None:
        """Everything that is to learn has a gradient: adapters beside layers that take no part would stay as they
        are."""
        without = [n for n, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if len(without) == len(self.parameters):
            raise PromptError("nothing of the model would learn from these samples", hint="Name other parts to tune.")
        if without:
            logger.warning("%d tensors have no gradient in the first step, such as %s", len(without), without[0])


def autocast_dtype(model: MiniCPMV) -> torch.dtype:
    """What products are computed in: bfloat16 on CUDA, and where a CPU has units for it; else float32."""
    if model.device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if model.device.type == "cpu" and torch.cpu._is_amx_tile_supported() else torch.float32
