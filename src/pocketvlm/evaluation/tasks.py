"""What is asked: examples, and tasks that make or load them one by one.

A task gives example `index` on its own, so that a run that was stopped goes on without drawing what is done already.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: How an answer is judged; `scoring.METRICS` has the definitions.
MetricName = Literal[
    "strict", "exact", "anls", "relaxed", "vqa", "iou", "cer", "choice", "contains", "contains_formula", "fields"
]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A video as decoded frames.

    Attributes:
        frames: uint8 [height, width, 3] each, RGB, all of one size.
        fps: frames a second.
    """

    frames: tuple[NDArray[np.uint8], ...]
    fps: float


#: A picture: a path, the bytes of a file, or pixels uint8 [height, width, 3]. A video: a path, bytes or a `Clip`.
Media: TypeAlias = "Path | bytes | NDArray[np.uint8] | Clip"


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One question about pictures or a video, with the answers that count.

    Attributes:
        id: names the example within its task, the same in every run.
        task: the task's name.
        media: pictures or videos in the order of the prompt, which shows them before the question.
        question: the whole text shown to the model, options and instructions included.
        answers: every accepted answer, at least one. For "vqa" all annotators' answers, repeats included; for "choice"
            the letter; for "iou" boxes as `<box>x1 y1 x2 y2</box>`, 0 to 1000.
        metric: how the model's answer is judged.
        subset: a part of the task that is also counted by itself, or "".
        choices: the options of a multiple-choice question in the order of their letters.
        messages: a whole conversation, OpenAI-style, which the answer continues; asked instead of `media` and
            `question`.
        options: of this example alone, as `VLM.chat` takes them; they win over those of the run.
    """

    id: str
    task: str
    media: tuple[Media, ...]
    question: str
    answers: tuple[str, ...]
    metric: MetricName
    subset: str = ""
    choices: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A named series of examples.

    Attributes:
        name: one word, as it is given on the command line.
        size: how many examples there are; None where they are drawn and never end.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def example(self, index: int, seed: int) -> Example:
        """Example `index`, 0 <= index < size. `seed` matters to drawn tasks only."""


@dataclass(frozen=True)
class ListTask:
    """A task whose examples are all there, such as a public set that was read from its files.

    Attributes:
        group: by the index of an example, what it belongs to, where examples are drawn in groups that stay together.
    """

    name: str
    examples: Sequence[Example]
    group: Callable[[int], str] | None = None

    @property
    def size(self) -> int:
        return len(self.examples)

    def example(self, index: int, seed: int = 0) -> Example:
        del seed  # nothing is drawn
        return self.examples[index]


class Suite(Protocol):
    """A set of tasks to choose from."""

    def names(self) -> Sequence[str]:
        """Every task of the suite, in the order of its table."""

    def task(self, name: str) -> Task:
        """A task by its name; `ConfigError` for a name that the suite does not have."""


def chosen_indices(task: Task, count: int, seed: int) -> list[int]:
    """Which examples a run of `count` asks: the first ones of a drawn task; of a listed one all, or as many, drawn with
    `seed` and in order; of one with groups those of whole groups, as many as fit into `count`, and one at least.
    """
    if task.size is None:
        return list(range(count))
    if count >= task.size:
        return list(range(task.size))
    draw = random.Random(f"{seed} {task.name}")
    if not isinstance(task, ListTask) or task.group is None:
        return sorted(draw.sample(range(task.size), count))
    groups: dict[str, list[int]] = {}
    for index in range(task.size):
        groups.setdefault(task.group(index), []).append(index)
    names, chosen = list(groups), list[int]()
    draw.shuffle(names)
    for name in names:
        if chosen and len(chosen) + len(groups[name]) > count:
            break
        chosen += groups[name]
    return sorted(chosen)


def examples_of(task: Task, count: int, seed: int = 0) -> Iterator[Example]:
    """The examples that a run of `count` asks, one by one."""
    return (task.example(index, seed) for index in chosen_indices(task, count, seed))
