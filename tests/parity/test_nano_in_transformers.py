"""Nano with an adapter that was trained here says the same in transformers with peft, and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import reference
import torch
from helpers.invariants import assert_close

import pocketvlm
from cookbook import data
from pocketvlm.config import ImageConfig
from pocketvlm.export.huggingface import write_huggingface
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.hub import resolve
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training.batches import Batch
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.sample import Sample
from pocketvlm.training.examples import IGNORED, Example, ExampleEncoder
from pocketvlm.training.lora import import_peft
from pocketvlm.training.run import tune
from pocketvlm.training.settings import TuneSettings

peft = import_peft()
OPTIONS = {"downsample_mode": "16x"}
PICTURES = 20

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # between those two


class Tuned(NamedTuple):
    """A run: nano in the published layout, its adapter, and what nano says with it of each picture, as examples."""

    base: Path
    adapter: Path
    examples: list[Example]
    texts: list[str]


@pytest.fixture(scope="module", params=["dots", "clip"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """With an adapter that has learnt pictures, or videos."""
    folder = tmp_path_factory.mktemp("tuned")
    data.write(request.param, folder, {"train": 32, "held_out": PICTURES // 2})
    data.write("own", folder / "own", {"held_out": PICTURES // 2})
    # Nano as `pocketvlm export huggingface` writes it, in float32: nothing is rounded between the two programs.
    write_huggingface(resolve("nano"), folder / "base", "f32")
    settings = TuneSettings(steps=8, batch_size=8, rank=4, learning_rate=4e-3, tune=("decoder", "merger"))
    tune(
        resolve(folder / "base"), open_datasets([folder / "train.jsonl"]), folder / "adapter", settings, options=OPTIONS
    )
    held_out = open_datasets([folder / "held_out.jsonl", folder / "own" / "held_out.jsonl"])
    asked = [held_out[i].messages[:-1] for i in range(len(held_out))]
    texts = answers(folder / "base", folder / "adapter", asked)
    encoder = ExampleEncoder(Processor.from_directory(folder / "base"), options=OPTIONS)
    said = [[*one, {"role": "assistant", "content": text}] for one, text in zip(asked, texts, strict=True)]
    return Tuned(folder / "base", folder / "adapter", [encoder(Sample(one, "said")) for one in said], texts)


def answers(model: Path, adapter: Path | None, asked: list[list[dict[str, object]]]) -> list[str]:
    """What a model says greedily; all must end by themselves, so that the end is compared too."""
    with pocketvlm.load(model, adapter=adapter, runtime="torch") as vlm:
        found = vlm.batch(asked, temperature=0.0, max_tokens=64, **OPTIONS)
    assert all(answer.finish_reason == "stop" for answer in found)
    return [answer.text for answer in found]


def theirs(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """Logits [S, V] of transformers."""
    pixels = to_reference_layout(example.patches, ImageConfig())
    sizes = torch.tensor([[view.size.height, view.size.width] for view in example.views])
    if model.config.video_token_id in example.input_ids:
        given = {"pixel_values_videos": pixels, "target_sizes_videos": sizes}
    else:
        given = {"pixel_values": pixels, "target_sizes": sizes}
    return model(input_ids=example.input_ids[None], downsample_mode="16x", **given).logits[0]


@torch.no_grad()
def ours(model: MiniCPMV, example: Example) -> torch.Tensor:
    """Logits [S, V] of pocketvlm."""
    batch = Batch.of([example])
    return model.logits(model(batch.input_ids, batch.packed("cpu"), model.encode_views(batch.patches, batch.views)))


def says(logits: torch.Tensor, example: Example) -> bool:
    """Whether greedy decoding gives the example's answer, its end included: by induction over its tokens."""
    learnt = example.targets != IGNORED
    return bool((logits[learnt].argmax(-1) == example.targets[learnt]).all())


@torch.no_grad()
def test_peft_on_transformers_says_what_nano_says_with_its_adapter(tuned: Tuned) -> None:
    base = reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(tuned.base, dtype=torch.float32)
    plain = [theirs(base.eval(), example) for example in tuned.examples]
    model = peft.PeftModel.from_pretrained(base, tuned.adapter).eval()
    found = [theirs(model, example) for example in tuned.examples]
    mine = load_model(resolve(tuned.base).with_adapter(tuned.adapter))
    for logits, example in zip(found, tuned.examples, strict=True):
        assert_close(ours(mine, example), logits, 1e-3)
        assert says(logits, example)
    # Without the adapter it says something else: the test would not pass with one that is not read.
    assert sum(says(logits, example) for logits, example in zip(plain, tuned.examples, strict=True)) < PICTURES - 5


@torch.no_grad()
def test_merged_it_says_the_same_here_and_in_transformers(tuned: Tuned, tmp_path: Path) -> None:
    merged = resolve(tuned.base).with_adapter(tuned.adapter)
    write_huggingface(merged, tmp_path / "exact", "f32")
    write_huggingface(merged, tmp_path / "rounded", "bf16")
    front, _, body = (
        (tmp_path / "exact" / "README.md").read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")
    )
    assert "license: apache-2.0" in front
    assert body.startswith("> These weights hold the adapter `adapter` too.")
    exact = reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(
        tmp_path / "exact", dtype=torch.float32
    )
    mine = load_model(resolve(tmp_path / "exact"))
    assert all(says(theirs(exact.eval(), example), example) for example in tuned.examples)
    assert all(says(ours(mine, example), example) for example in tuned.examples)
    # In bfloat16 each weight is off by up to 0.4 %: a close call may fall otherwise.
    rounded = load_model(resolve(tmp_path / "rounded"))
    assert sum(says(ours(rounded, example), example) for example in tuned.examples) >= PICTURES - 4


def test_its_processor_in_transformers_has_the_rate_of_the_model(tuned: Tuned) -> None:
    """Else it would write fewer places for visual tokens than the model fills."""
    config = json.loads((tuned.base / "config.json").read_text(encoding="utf-8"))
    for name, file in (("image_processor", "preprocessor_config"), ("video_processor", "video_preprocessor_config")):
        given = json.loads((tuned.base / f"{file}.json").read_text(encoding="utf-8"))
        nested = json.loads((tuned.base / "processor_config.json").read_text(encoding="utf-8"))[name]
        assert given["downsample_mode"] == nested["downsample_mode"] == config["downsample_mode"] == "4x"
    processor = reference.transformers.AutoProcessor.from_pretrained(tuned.base)
    assert (processor.image_token_divisor, processor.video_token_divisor) == (4, 4)
