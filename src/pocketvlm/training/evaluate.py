"""Answers of a model that learns, by the engine, against those of its validation samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from pocketvlm.api.vlm import VLM
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.template import without_places
from pocketvlm.training.data.sample import RANDOM, Sample, SampleError

MAX_TOKENS = 512


def exact_answers(
    model: MiniCPMV,
    processor: Processor,
    samples: Sequence[Sample],
    options: Mapping[str, Any],
    most: int | None = None,
) -> float | None:
    """Share of the samples whose last answer is, greedily and without blanks around it, the one of the sample. Those
    that end with a call of a tool are not asked.

    Args:
        options: of pictures, as those of `ExampleEncoder`.
        most: samples that are asked, from the first on; all when None.

    Returns:
        None where no sample can be asked.
    """
    wanted: dict[int, set[str]] = {}

    def requests() -> Any:
        for i in range(len(samples) if most is None else min(most, len(samples))):
            try:
                sample = samples[i]
            except SampleError:
                continue
            *before, last = sample.messages
            # What is no text cannot be compared with one: any call of a tool would be right.
            if last.get("tool_calls") or not isinstance(last["content"], str):
                continue
            # Whether the marks of places come out as text depends on the tokenizer.
            wanted[i] = {last["content"].strip(), without_places(last["content"]).strip()}
            given = sample.with_options(options)
            if given.get("downsample_mode") == RANDOM:
                given.pop("downsample_mode")
            if sample.tools is not None:
                given["tools"] = sample.tools
            yield i, before, {**given, "temperature": 0.0, "max_tokens": MAX_TOKENS}

    right = 0
    with _as_vlm(model, processor) as vlm, closing(vlm.as_completed(requests())) as answered:
        for i, answers in answered:
            if isinstance(answers, Exception):
                wanted.pop(i)
            else:
                right += answers[0].text.strip() in wanted[i]
    return right / len(wanted) if wanted else None


def measure_model(
    model: MiniCPMV, processor: Processor, measure: Callable[[VLM], Mapping[str, float]]
) -> Mapping[str, float]:
    """What `measure` finds of a model that learns, with its weights as they are."""
    with _as_vlm(model, processor) as vlm:
        return measure(vlm)


def _as_vlm(model: MiniCPMV, processor: Processor) -> VLM:
    model.eval()
    return VLM(TorchRunner(model, graphs=False), processor, {})
