"""Conversations to learn from, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from helpers.app import png
from pocketvlm.model.hub import resolve
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.processor import Processor
from pocketvlm.training.batches import Batch
from pocketvlm.training.data.sample import Sample
from pocketvlm.training.examples import Example, ExampleEncoder, training_processor
from pocketvlm.training.losses import answer_losses


def picture(height: int = 60, width: int = 80, seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "image": png(height, width, seed)}


def sample(answer: str = "A cat.", *, pictures: int = 1, seed: int = 0, turns: int = 1, **fields: Any) -> Sample:
    """A conversation about some pictures of noise."""
    media = [picture(60 + 10 * seed, 80, seed + i) for i in range(pictures)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*media, {"type": "text", "text": "What is it?"}]}]
    for turn in range(turns):
        if turn:
            messages.append({"role": "user", "content": f"And {turn}?"})
        messages.append({"role": "assistant", "content": f"{answer} {turn}" if turn else answer})
    return Sample(messages, f"noise.jsonl:{seed}", **fields)


def samples() -> list[Sample]:
    """Of no, one and several pictures, with short and long answers, in one and in several turns."""
    return [
        sample("No.", pictures=0, seed=1),
        sample("A long answer about the image.", seed=2),
        sample("One.", pictures=2, seed=3, turns=2),
    ]


def encoded(directory: Path, mode: str = "16x") -> list[Example]:
    """The examples of `samples`."""
    encoder = ExampleEncoder(Processor.from_directory(directory), options={"downsample_mode": mode})
    return [encoder(one) for one in samples()]


def learn(one: Sample, limits: MediaLimits | None = None) -> Example:
    """The example that the embedded model would learn, as `tune` makes it."""
    processor = training_processor(resolve("nano"))
    if limits is not None:
        processor.limits = limits
    return ExampleEncoder(processor, options={"max_slice_nums": 1, "downsample_mode": "16x"})(one)


def gradients(model: MiniCPMV, batches: list[Batch], weight: int) -> dict[str, Tensor]:
    """Of the sum of all losses over `weight`, by name."""
    model.zero_grad()
    for batch in batches:
        (answer_losses(model, batch).sum() / weight).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each within 2e-4 of its own largest value: those of the reference in fp32 are 1.5e-4 from its own in fp64 (Intel
    Xeon; less on an AMD EPYC). Those that are zero but for rounding, such as the biases of keys, have errors of the
    size of all."""
    floor = 1e-7 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) <= 2e-4 * largest + floor, name
