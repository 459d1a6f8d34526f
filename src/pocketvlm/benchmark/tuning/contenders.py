"""Who learns: our trainer, and the loop that transformers and peft are used with.

Both have the same encoded samples. Theirs are padded to the longest of a batch, which is what a collator does; ours are
packed. Both clip gradients, and both step by the same optimiser.

Shapes: B samples · S tokens of the longest
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pocketvlm.api.torch_devices import choose_device
from pocketvlm.benchmark.reference import import_transformers
from pocketvlm.benchmark.tuning.documents import documents
from pocketvlm.errors import ConfigError
from pocketvlm.model.hub import resolve
from pocketvlm.model.names import published_name
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training.examples import IGNORED, Example, ExampleEncoder
from pocketvlm.training.feed import Feed
from pocketvlm.training.lora import import_peft
from pocketvlm.training.memory import import_bitsandbytes
from pocketvlm.training.objectives import Answers
from pocketvlm.training.optimisers import make_optimiser
from pocketvlm.training.parts import linear_layers, part_of
from pocketvlm.training.precision import autocast_dtype
from pocketvlm.training.run import load_base, prepare
from pocketvlm.training.settings import TuneSettings
from pocketvlm.training.trainer import Trainer

RATE = "16x"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What both do.

    Attributes:
        model: as `load` takes it.
        settings: with `steps`, the first of which warms up.
        side, words: of the pages and their answers, see `documents`.
    """

    model: str
    settings: TuneSettings
    device: str = "auto"
    side: int = 448
    words: int = 100


class Contender(Protocol):
    """Someone who learns; `step` works on the samples of one step, and returns the mean loss before it."""

    name: str
    device: torch.device
    examples: list[list[Example]]

    def step(self, number: int) -> float: ...


def _examples(job: Job) -> list[list[Example]]:
    """The samples of every step."""
    settings, directory = job.settings, resolve(job.model)
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    encoder = ExampleEncoder(processor, max_tokens=settings.max_tokens, options={"downsample_mode": RATE})
    assert settings.steps is not None
    samples = documents(settings.steps * settings.batch_size, job.side, job.words, settings.seed)
    examples = [encoder(sample) for sample in samples]
    return [examples[i : i + settings.batch_size] for i in range(0, len(examples), settings.batch_size)]


class OurTrainer:
    """The trainer of `pocketvlm tune`."""

    name = "pocketvlm"

    def __init__(self, job: Job) -> None:
        self.device, self.examples = choose_device(job.device), _examples(job)
        directory = resolve(job.model)
        torch.manual_seed(job.settings.seed)
        model = load_base(directory, job.settings, self.device)
        prepare(model, job.settings)
        encoder = ExampleEncoder(Processor.from_directory(directory.path, configs=directory.configs))
        feed = Feed([], encoder, pairs=False, seed=0)  # the samples are encoded already
        with tempfile.TemporaryDirectory() as folder:  # nothing is written there
            self.trainer = Trainer(model, feed, Answers(), job.settings, Path(folder))

    def step(self, number: int) -> float:
        report = self.trainer.step([(example,) for example in self.examples[number]])
        assert report is not None, "the samples of the benchmark are good"
        return report.loss


class PeftLoop:
    """A model of transformers with adapters of peft, in a loop as its documentation writes it."""

    name = "transformers + peft"

    def __init__(self, job: Job) -> None:
        self.settings, self.device, self.examples = job.settings, choose_device(job.device), _examples(job)
        directory = resolve(job.model)
        self.dtype = autocast_dtype(self.device, directory.config.text.hidden_size)
        self.image_config = directory.image_config
        with torch.device("meta"):
            shapes = MiniCPMV(directory.config)
        torch.manual_seed(self.settings.seed)
        options: dict[str, Any] = {}
        if self.settings.method == "qlora":
            import_bitsandbytes()
            options["quantization_config"] = import_transformers().BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=["model.vision_tower", "model.merger", "lm_head"],
            )
        kind: Any = import_transformers().MiniCPMV4_6ForConditionalGeneration
        model = kind.from_pretrained(directory.path, dtype=torch.float32, attn_implementation="sdpa", **options)
        self.model = _prepared(model.to(self.device), shapes, self.settings).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.rate = self.settings.rate(directory.config.text)
        self.optimiser = make_optimiser(self.parameters, self.settings, self.rate)

    def step(self, number: int) -> float:
        batch = {name: one.to(self.device) for name, one in self._collate(self.examples[number]).items()}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss: Tensor = self.model(**batch, downsample_mode=RATE).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """[B, S] tokens and labels, with padding on the right; the model shifts the labels itself."""
        rows = [torch.cat([one.input_ids, one.targets[-1:]]) for one in examples]
        labels = [torch.cat([torch.tensor([IGNORED]), one.targets]) for one in examples]
        pad = nn.utils.rnn.pad_sequence
        sizes = [[view.size.height, view.size.width] for one in examples for view in one.views]
        return {
            "input_ids": pad(rows, batch_first=True),
            "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=IGNORED),
            "pixel_values": to_reference_layout(torch.cat([one.patches for one in examples]), self.image_config),
            "target_sizes": torch.tensor(sizes),
        }


def _prepared(model: Any, shapes: MiniCPMV, settings: TuneSettings) -> Any:
    """The model with adapters beside the layers that ours has them beside, or with the parts that learn marked."""
    if settings.method == "full":
        wanted = {published_name(name) for name, _ in shapes.named_parameters() if part_of(name) in settings.tune}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        return model
    peft = import_peft()
    if settings.method == "qlora":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
    elif settings.gradient_checkpointing:
        raise ConfigError("gradient_checkpointing is compared with qlora only", hint="Leave it out.")
    names = [published_name(f"{name}.weight").removesuffix(".weight") for name in linear_layers(shapes, settings.tune)]
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, bias="none", target_modules=names)
    return peft.get_peft_model(model, config)


def timed_step(contender: Contender, number: int) -> tuple[float, float]:
    """Seconds of a step, and its loss."""
    began = time.perf_counter()
    loss = contender.step(number)
    if contender.device.type == "cuda":
        torch.cuda.synchronize(contender.device)
    return time.perf_counter() - began, loss
