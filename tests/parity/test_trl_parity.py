"""Losses and gradients of fine-tuning equal those that TRL's own trainers compute, on transformers, of the same samples
in one padded batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from helpers.training import assert_gradients_close, encoded, sample
from torch import Tensor, nn

from pocketvlm.config import ImageConfig
from pocketvlm.lenient_imports import lenient_registrations
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.names import published_name
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training.batches import Batch
from pocketvlm.training.examples import Example, ExampleEncoder
from pocketvlm.training.objectives import Answers, Objective, Preferences

BETA = 0.3
IGNORED = -100

with warnings.catch_warnings(), lenient_registrations():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    trl.SFTTrainer, trl.DPOTrainer  # noqa: B018  # it imports them when they are named


@contextmanager
def quiet() -> Iterator[None]:
    """What those libraries warn of is between them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model_of(directory: Path) -> Any:
    kind = reference.transformers.MiniCPMV4_6ForConditionalGeneration
    return kind.from_pretrained(directory, dtype=torch.float32)


def trainer(kind: Any, config: Any, directory: Path, out: Path, row: dict[str, str], **more: Any) -> Any:
    """A trainer of TRL with its defaults, of which only the loss is asked."""
    tokenizer = reference.transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    with quiet():
        arguments = config(str(out), use_cpu=True, report_to=[], gradient_checkpointing=False, bf16=False)
        for name, value in more.pop("arguments", {}).items():
            setattr(arguments, name, value)
        return kind(
            model_of(directory),
            args=arguments,
            train_dataset=datasets.Dataset.from_list([row]),
            processing_class=tokenizer,
            **more,
        )


def padded(examples: Sequence[Example]) -> dict[str, Tensor]:
    """What a collator gives: whole sequences with padding behind them, and labels that are not shifted yet."""
    rows = [torch.cat([one.input_ids, one.targets[-1:]]) for one in examples]
    labels = [torch.cat([torch.tensor([IGNORED]), one.targets]) for one in examples]
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=IGNORED),
        "pixel_values": to_reference_layout(torch.cat([one.patches for one in examples]), ImageConfig()),
        "target_sizes": torch.tensor([[v.size.height, v.size.width] for one in examples for v in one.views]),
    }


def assert_same(model: MiniCPMV, objective: Objective, examples: Sequence[Example], theirs: Any, loss: Tensor) -> None:
    """The mean loss of a packed batch, and the gradients of every parameter, are those of `theirs`."""
    model.zero_grad()
    found = objective.losses(model, Batch.of(examples)).mean()
    found.backward()
    assert abs(float(found.detach()) / float(loss.detach()) - 1) < 1e-5
    loss.backward()
    expected = {}
    for name, _ in model.named_parameters():
        gradient = theirs.get_parameter(published_name(name)).grad
        if name == "vision_tower.patch_embedding.weight":
            gradient = gradient.permute(0, 2, 3, 1).flatten(1)
        expected[name] = gradient
    assert_gradients_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)


def test_the_loss_of_answers_is_that_of_sft_trainer(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    directory = seeded_checkpoint(0)
    examples = encoded(directory)
    lengths = {len(one.input_ids) for one in examples}
    assert len(lengths) == len(examples)  # so that there is padding
    sft = trainer(trl.SFTTrainer, trl.SFTConfig, directory, tmp_path, {"text": "A cat."})
    with quiet():
        loss = sft.compute_loss(sft.model, padded(examples))
    model = load_model(directory).requires_grad_(True)
    assert_same(model, Answers(), examples, sft.model, loss)


def test_the_loss_of_preferences_is_that_of_dpo_trainer(
    seeded_checkpoint: Callable[[int], Path], tmp_path: Path
) -> None:
    directory, before = seeded_checkpoint(0), seeded_checkpoint(1)
    encoder = ExampleEncoder(Processor.from_directory(directory), options={"downsample_mode": "16x"})
    pairs = [
        encoder.pair(sample("There is none.", pictures=1, seed=1, rejected="A red one, on the left.")),
        encoder.pair(sample("Two.", pictures=2, seed=2, rejected="No.")),
    ]
    dpo = trainer(
        *(trl.DPOTrainer, trl.DPOConfig, directory, tmp_path),
        {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
        arguments={"beta": BETA},
        ref_model=model_of(before),
    )
    inputs = padded([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs])
    inputs["completion_mask"] = (inputs.pop("labels") != IGNORED).long()
    with quiet():
        loss = dpo.compute_loss(dpo.model, inputs)
    model, old = load_model(directory).requires_grad_(True), load_model(before)
    objective = Preferences(BETA, lambda _model: nullcontext(old))
    assert_same(model, objective, [one for pair in pairs for one in pair], dpo.model, loss)
    assert abs(float(loss.detach()) - 0.6931) > 1e-3  # of models that differ
