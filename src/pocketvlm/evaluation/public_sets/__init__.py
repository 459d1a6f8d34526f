"""Public sets that users have on their disk: `PUBLIC_SETS` says how each is read, asked and judged.

Nothing is downloaded. Metrics and prompts are those of the model's published evaluation, see `prompts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.public_sets import chartqa, docvqa, mmbench, ocrbench, prompts, refcoco, textvqa, video_mme
from pocketvlm.evaluation.public_sets.mmbench import circular_accuracy
from pocketvlm.evaluation.public_sets.prompts import Prompt
from pocketvlm.evaluation.tasks import Example, ListTask, MetricName

__all__ = ["PUBLIC_SETS", "PublicSet", "circular_accuracy", "load", "public_set"]


@dataclass(frozen=True)
class PublicSet:
    """A public set.

    Attributes:
        name: as given on the command line; the `task` of its examples.
        title: its name in print.
        splits: those whose answers are public; the first one is the one that scores are published for.
        metric: how answers are judged.
        prompt: what is put around each question.
        read: (folder, split) to the examples, each made, with its picture, when it is asked for.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    metric: MetricName
    prompt: Prompt
    read: Callable[[Path, str], Sequence[Example]]

    def examples(self, folder: Path | str, split: str | None = None) -> Sequence[Example]:
        """The examples of a local copy; only questions are in memory.

        Args:
            folder: where the set was unpacked.
            split: one of `splits`, the first one when None.

        Raises:
            ConfigError: a split, a folder or a file of the set that does not exist, or that is damaged.
            MissingExtraError: the copy is of Parquet files and pyarrow is not installed.
        """
        split = self.splits[0] if split is None else split
        if split not in self.splits:
            hint = f"Use one of {', '.join(self.splits)}: splits whose answers are public."
            raise ConfigError(f"{self.title} has no split {split!r}", hint=hint)
        try:
            is_directory = Path(folder).is_dir()
        except (OSError, ValueError):  # too long a name, a directory that is closed to us, a zero byte
            is_directory = False
        if not is_directory:
            raise ConfigError(
                f"{self.title}: {str(folder)!r:.80} is not a directory", hint="Give the folder of your local copy."
            )
        return self.read(Path(folder), split)

    def load(self, folder: Path | str, split: str | None = None, limit: int | None = None) -> Iterator[Example]:
        """The first `limit` examples, one by one; arguments and errors as for `examples`.

        An example raises `MediaError` when its picture or video is missing.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ConfigError(f"limit={limit!r} is not a number of examples")
        return itertools.islice(self.examples(folder, split), limit)

    def task(self, folder: Path | str, split: str | None = None) -> ListTask:
        """The set as a task; arguments and errors as for `examples`."""
        examples = self.examples(folder, split)
        group = mmbench.question_of(examples) if self.name == "mmbench-circular" else None
        return ListTask(self.name, examples, group)


PUBLIC_SETS: dict[str, PublicSet] = {
    s.name: s
    for s in (
        PublicSet("docvqa", docvqa.TITLE, docvqa.SPLITS, "anls", prompts.SHORT_ANSWER, docvqa.examples),
        PublicSet("chartqa", chartqa.TITLE, chartqa.SPLITS, "relaxed", prompts.SHORT_ANSWER, chartqa.examples),
        PublicSet("ocrbench", ocrbench.TITLE, ocrbench.SPLITS, "contains", prompts.OCR, ocrbench.examples),
        PublicSet("textvqa", textvqa.TITLE, textvqa.SPLITS, "vqa", prompts.SHORT_ANSWER, textvqa.examples),
        PublicSet("mmbench", mmbench.TITLE, mmbench.SPLITS, "choice", prompts.STEPS_THEN_LETTER, mmbench.examples),
        PublicSet(
            "mmbench-circular",
            f"{mmbench.TITLE}, circular",
            mmbench.SPLITS,
            "choice",
            prompts.STEPS_THEN_LETTER,
            partial(mmbench.examples, circular=True),
        ),
        *(
            PublicSet(name, title, refcoco.SPLITS, "iou", prompts.BOX, partial(refcoco.examples, name))
            for name, title in refcoco.TITLES.items()
        ),
        PublicSet("video-mme", video_mme.TITLE, video_mme.SPLITS, "choice", prompts.VIDEO_LETTER, video_mme.examples),
    )
}


def public_set(name: str) -> PublicSet:
    """The set of this name; `ConfigError` lists the names there are."""
    if name not in PUBLIC_SETS:
        raise ConfigError(f"{name!r} is not a public set", hint=f"Use one of {', '.join(PUBLIC_SETS)}.")
    return PUBLIC_SETS[name]


def load(name: str, folder: Path | str, split: str | None = None, limit: int | None = None) -> Iterator[Example]:
    """Examples of a local copy of the set `name`; see `PublicSet.load`."""
    return public_set(name).load(folder, split, limit)
