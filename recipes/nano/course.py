"""Where in its curriculum a run is, how long it lasts, and the rate that it learns at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pocketvlm.training.checkpoints import Progress
from recipes.nano.curriculum import Stage

LAG = 48  # steps between the end of a stage and the beginning of the next one, which workers may have drawn ahead
SHORTEST_STAGE = 60  # steps before the moving average says anything


class Course:
    """Which of some stages each step belongs to. A stage ends by its mark or its steps; as workers draw ahead of the
    trainer, the next one begins `LAG` steps later, with any number of workers.

    Attributes:
        stage, began: number of the stage, and its first step.
        next: first step and number of the stage that is due.
        average: moving average of the loss that ends the stage; 0 before there is one.
        mixes: (first step, what the shares of kinds of pictures are multiplied by), the newest last; only the last two
            can still be asked for.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self.stage, self.began, self.average = 0, 0, 0.0
        self.next: tuple[int, int] | None = None
        self.mixes: list[tuple[int, dict[str, float]]] = []

    def change_mix(self, step: int, factors: Mapping[str, float]) -> None:
        """The shares shall change, `LAG` steps after `step`."""
        self.mixes = [*self.mixes[-1:], (step + LAG, dict(factors))]

    def mix_at(self, step: int) -> Mapping[str, float]:
        """What the shares are multiplied by at a step; nothing where they are as the stage says."""
        return next((factors for first, factors in reversed(self.mixes) if step >= first), {})

    def ask(self, step: int) -> None:
        """The next stage shall begin, `LAG` steps after `step`."""
        if self.next is None and self.stage_at(step) + 1 < len(self.stages):
            self.next = (step + LAG, self.stage_at(step) + 1)

    def stage_at(self, step: int) -> int:
        return self.next[1] if self.next and step >= self.next[0] else self.stage

    def numbers(self, step: int) -> Iterator[tuple[int, int, Mapping[str, float]]]:
        """(step, stage, mix) from a step on, without end."""
        while True:
            yield step, self.stage_at(step), self.mix_at(step)
            step += 1

    def arrive(self, step: int) -> bool:
        """Take note that `step` begins; whether it is the first of its stage."""
        if self.next and step >= self.next[0]:
            self.began, self.stage = self.next
            self.next, self.average = None, 0.0
        return step == self.began

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of the losses of a step, after which `step` are done, and end the stage where they say so."""
        stage = self.stages[self.stage]
        loss = figures.get("characters" if stage.alone == 1 else "answers")
        if loss is None:
            return
        self.average = 0.97 * self.average + 0.03 * loss if self.average else loss
        age = step - self.began
        if (self.average < stage.mark and age > SHORTEST_STAGE) or 0 < stage.steps <= age + LAG:
            self.ask(step)

    def state(self) -> list[Any]:
        return [self.stage, self.began, self.next, self.average, self.mixes]

    def restore(self, state: Sequence[Any]) -> None:
        self.stage, self.began, due, self.average, mixes = state
        self.next = None if due is None else (due[0], due[1])
        self.mixes = [(first, dict(factors)) for first, factors in mixes]


class Length:
    """A constant rate after the warm-up. In the end it falls to zero in a line, over some steps or by the clock.

    Attributes:
        warmup: steps in which the rate rises.
        last: the run ends after this step; None is no limit.
        until_stage: the run ends where this stage would begin.
        cooldown: first and last step of a rate that falls.
        deadline: seconds of training at which the rate, falling all the time, is zero.
    """

    steps = 0  # not known: they depend on losses, or on the clock

    def __init__(self, course: Course, warmup: int) -> None:
        self.course, self.warmup = course, warmup
        self.last: int | None = None
        self.until_stage: str | None = None
        self.cooldown: tuple[int, int] | None = None
        self.deadline: float | None = None

    def share(self, done: Progress) -> float:
        """How much of the run is done, see `pocketvlm.training.schedules`."""
        if self.course.stages[self.course.stage_at(done.step)].name == self.until_stage:
            return 1.0
        last = self.cooldown[1] if self.cooldown else self.last
        by_steps = 0.0 if last is None else done.step / last
        return min(1.0, max(by_steps, done.seconds / self.deadline if self.deadline else 0.0))

    def factor(self, done: Progress) -> float:
        """Of the highest rate, in the next step."""
        return self._of_run(done) * self.course.stages[self.course.stage_at(done.step)].rate_at(done.step)

    def _of_run(self, done: Progress) -> float:
        warm = (done.step + 1) / self.warmup
        if self.deadline is not None:
            return max(0.0, min(warm, 1 - done.seconds / self.deadline))
        if self.cooldown and done.step >= self.cooldown[0]:
            first, last = self.cooldown
            return max(0.0, min((done.step - first + 1) / self.warmup, (last - done.step) / (last - first)))
        return min(1.0, warm)

    def state(self) -> list[Any]:
        return [self.cooldown, self.deadline]

    def restore(self, state: Sequence[Any]) -> None:
        falling, self.deadline = state
        self.cooldown = None if falling is None else (falling[0], falling[1])
