"""One conversation to learn from, whatever file it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.errors import PocketVLMError, PromptError
from pocketvlm.processing.picture_options import merged_options

RANDOM = "random"  # a `downsample_mode` of samples that are learnt: 16x or 4x for each view


class SampleError(PocketVLMError):
    """A sample that nothing can be learnt from; the message begins with its source."""

    def __init__(self, source: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{source}: {message}", hint=hint)
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes send it."""
        return _restored, (self.source, str(self))


def _restored(source: str, text: str) -> SampleError:
    return SampleError(source, text.removeprefix(f"{source}: "))


@dataclass(frozen=True, slots=True)
class Sample:
    """Attributes:
    messages: OpenAI-style, as `Processor` takes them; the last one is the assistant's.
    source: the file and the line, for messages.
    rejected: an answer that is worse than the last message; of preference data.
    tools: OpenAI tool definitions.
    options: of its pictures, by the names of `PictureOptions`.
    """

    messages: list[dict[str, Any]]
    source: str
    rejected: str | None = None
    tools: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Its own options before those of a run. A budget is of "auto": none where the sample has another mode."""
        return merged_options(options, self.options)


def check_answers(messages: Iterable[Mapping[str, Any]]) -> None:
    """Refuse an answer that is more than text, which is all that a model can write: its picture would be learnt as
    tokens.

    Raises:
        PromptError: one holds a picture or a video.
    """
    for number, message in enumerate(messages):
        content = message.get("content")
        if message["role"] != "assistant" or not isinstance(content, list | tuple):
            continue
        for kind in (part["type"] for part in content if part["type"] != "text"):
            what = "a video" if kind.startswith("video") else "a picture"
            raise PromptError(f"messages[{number}] is an answer with {what}", hint="Put it into a question.")
