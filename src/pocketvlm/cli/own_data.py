"""A file or folder of samples, in any format that `pocketvlm tune` reads, as a task of `pocketvlm eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pocketvlm.cli.console import say
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.evaluation.scoring import score
from pocketvlm.evaluation.tasks import Example, MetricName
from pocketvlm.ranges import show
from pocketvlm.training.data.sample import RANDOM, SampleError

if TYPE_CHECKING:
    from pocketvlm.training.data.dataset import Dataset

# Those that need more than one answer and its question: options to choose from, answers of ten annotators.
_UNFIT = ("choice", "vqa")
# Those that read more than text from the answers: what they cannot read would be wrong whatever is answered.
_PARSED = ("iou", "fields")
METRICS: tuple[MetricName, ...] = tuple(name for name in get_args(MetricName) if name not in _UNFIT)


@dataclass(frozen=True)
class DataTask:
    """Conversations whose last answer is to be given. A sample that is bad fails alone."""

    name: str
    samples: Dataset
    metric: MetricName

    @property
    def size(self) -> int:
        return len(self.samples)

    def example(self, index: int, seed: int = 0) -> Example:
        """Raises:
        MediaError: nothing can be asked of the sample, or its answer is not text, or none that the metric can read.
        """
        from pocketvlm.processing.prompt.template import without_places

        del seed  # nothing is drawn
        try:
            sample = self.samples[index]
        except SampleError as error:
            raise MediaError(str(error)) from None
        *before, last = sample.messages
        answer = last.get("content")
        if last.get("tool_calls") or not isinstance(answer, str) or not answer.strip():
            raise MediaError(f"{sample.source}: its last answer is not text, so nothing can be compared with it")
        options: dict[str, Any] = dict(sample.options)
        if options.get("downsample_mode") == RANDOM:  # is for learning
            del options["downsample_mode"]
        if sample.tools is not None:
            options["tools"] = sample.tools
        # Whether a model's own tokens come out as text depends on who decodes them.
        question, expected = _text(before[-1].get("content")), tuple(dict.fromkeys((answer, without_places(answer))))
        example = Example(
            sample.source, self.name, (), question, expected, self.metric, messages=tuple(before), options=options
        )
        if self.metric in _PARSED and max(score(one, example) for one in expected) < 1:
            text = f"{sample.source}: its last answer is {show(answer)}, which the metric {self.metric} cannot read"
            raise MediaError(text, hint="Give another --metric.")
        return example


def _text(content: Any) -> str:
    """The text of a message, for reports."""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or () if part.get("type") == "text")


def data_tasks(sources: Sequence[str], metric: MetricName, taken: Sequence[str]) -> list[DataTask]:
    """One task for each set, by the name of its file as it was given, and its split. Of a folder with splits it is the
    one for tests, or else for validation.

    Args:
        taken: names that other tasks have.

    Raises:
        ConfigError: a file is missing, empty or of no known format, or has the name of another task.
    """
    from pocketvlm.training.data.dataset import Dataset, open_datasets

    tasks: list[DataTask] = []
    for source in dict.fromkeys(sources):
        sets = open_datasets([source], splits=("test", "validation")).sources
        for one in sets:
            # A folder's split, if it is one, stands behind its name there.
            split = one.name.removeprefix(Path(source).name) if one.name.startswith(f"{Path(source).name}:") else ""
            name = f"{source}{split}" if len(sets) == 1 else f"{source}:{one.name}"
            if name in taken:
                raise ConfigError(f"{name!r:.80} is a task of the suite too", hint=f"Give the file as ./{name}")
            tasks.append(DataTask(name, Dataset([one]), metric))
    return tasks


def tell_unused(*datasets: Dataset | None) -> None:
    """Say which columns nothing is read from, a line for each file."""
    found: dict[str, list[str]] = {}
    for dataset in filter(None, datasets):
        found |= dataset.unused_columns()
    for file, names in found.items():
        say(f"{file}: nothing is read from the columns {', '.join(names)}")
