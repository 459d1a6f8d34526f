"""Who is asked: the interface of models and endpoints, and a pocketvlm model behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from pocketvlm.errors import ConfigError, EngineError, MediaError, PromptError
from pocketvlm.evaluation.ranges import LOCAL
from pocketvlm.evaluation.scoring import metric_of
from pocketvlm.evaluation.tasks import Clip, Example, Media
from pocketvlm.processing.picture_options import merged_options

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM

Numbered = tuple[int, Example]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to one example; the fields are those of `results.Record`."""

    answer: str = ""
    prompt_tokens: int | None = None
    visual_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    error: str = ""


class Answerer(Protocol):
    """Something that answers examples."""

    def answer(self, examples: Iterable[Numbered]) -> Iterator[tuple[int, Example, Reply]]:
        """Answer numbered examples, in any order, taking them from the iterator no faster than needed.

        What is wrong with one example only becomes a `Reply` with `error`; what is wrong with all raises.
        """


class LocalModel:
    """A pocketvlm model, asked in batches.

    Args:
        options: of pictures and sampling, as `VLM.chat` takes them; without `max_tokens` the metric decides it.
        batch_size: examples that are answered together.
        shown: the media of an example as the model is to see them; those of the example when None. A `MediaError` in
            it fails that example only.
    """

    def __init__(
        self,
        vlm: VLM,
        options: Mapping[str, Any],
        batch_size: int = 16,
        shown: Callable[[Example], tuple[Media, ...]] | None = None,
    ) -> None:
        self.vlm, self.options = vlm, dict(options)
        self.batch_size = LOCAL["batch_size"].check("batch_size", batch_size)
        self.shown = shown or (lambda example: example.media)

    def answer(self, examples: Iterable[Numbered]) -> Iterator[tuple[int, Example, Reply]]:
        for batch in _batches(examples, self.batch_size):
            began = time.perf_counter()
            replies = self._ask([example for _, example in batch])
            seconds = (time.perf_counter() - began) / len(batch)
            for (index, example), reply in zip(batch, replies, strict=True):
                yield index, example, replace(reply, seconds=seconds)

    def _ask(self, examples: Sequence[Example]) -> list[Reply]:
        """Replies to examples that have options in common."""
        own = merged_options(self.options, examples[0].options)
        options = {"max_tokens": metric_of(examples[0]).max_tokens, **own}
        try:
            answers = self.vlm.batch([messages_of(e, self.shown(e)) for e in examples], **options)
        except (MediaError, PromptError, EngineError, ConfigError) as error:
            if isinstance(error, ConfigError) and not examples[0].options:
                raise  # of everybody's options
            if len(examples) == 1:
                return [Reply(error=str(error))]
            # One of them cannot be asked, or its answer was lost: find out which, and answer the others.
            return [reply for example in examples for reply in self._ask([example])]
        return [Reply(a.text, a.usage.prompt_tokens, a.usage.visual_tokens, a.usage.completion_tokens) for a in answers]


def _batches(examples: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Neighbours, at most `size`, that have options in common, and whose answers may be of one length."""
    batch: list[Numbered] = []
    for index, example in examples:
        if batch and (len(batch) == size or _needs(batch[0][1]) != _needs(example)):
            yield batch
            batch = []
        batch.append((index, example))
    if batch:
        yield batch


def _needs(example: Example) -> tuple[int, Mapping[str, Any]]:
    return metric_of(example).max_tokens, example.options


def messages_of(example: Example, media: Sequence[Media]) -> list[dict[str, Any]]:
    """The example as a conversation for `VLM.chat`: its own, or its `media` first, then the question."""
    from pocketvlm.processing.media.load_image import is_video

    if example.messages:
        return list(example.messages)
    content: list[dict[str, Any]] = []
    for medium in media:
        if isinstance(medium, Clip):
            content.append({"type": "video", "video": list(medium.frames), "fps": medium.fps})
        else:
            kind = "video" if is_video(medium) else "image"
            content.append({"type": kind, kind: medium})
    return [{"role": "user", "content": [*content, {"type": "text", "text": example.question}]}]
