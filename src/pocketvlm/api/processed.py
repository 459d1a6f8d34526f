"""A conversation whose pictures are decoded and cut: what the engine's machine need not do itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketvlm.processing.inputs import ModelInputs
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.processing.processor import Processor
from pocketvlm.ranges import plain_number

PROMPT_OPTIONS = (*PICTURE_OPTIONS, "enable_thinking", "tools")


@dataclass(frozen=True, slots=True)
class Processed:
    """What `VLM.prepare` and `VLM.as_completed` take in the place of messages; it may be pickled and sent elsewhere.

    Attributes:
        inputs: of the model.
        seconds: that fetching, decoding and cutting took.
    """

    inputs: ModelInputs
    seconds: float


# What is asked: messages in OpenAI's format, or what `process` made of them.
Conversation = Sequence[Mapping[str, Any]] | Processed


def process(processor: Processor, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Processed:
    """Fetch, decode and cut the media of a conversation, and render its prompt.

    Args:
        options: of a request; those of sampling are left alone.

    Raises:
        PromptError, MediaError, ConfigError: as a call of the processor.
    """
    began = time.perf_counter()
    media = {k: plain_number(k, v) for k, v in options.items() if k in PROMPT_OPTIONS and v is not None}
    inputs = processor(messages, **media)
    return Processed(inputs, time.perf_counter() - began)
