"""Adapters that were trained here load in peft on transformers, and answer there as here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from helpers.in_fp64 import in_fp64
from helpers.invariants import assert_close, assert_same_decoding
from helpers.training import encoded

from pocketvlm.config import ImageConfig
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.batches import Batch
from pocketvlm.training.lora import add_lora, import_peft, save_adapter
from pocketvlm.training.settings import PARTS, TuneSettings

peft = import_peft()


def moved(model: MiniCPMV) -> MiniCPMV:
    """With adapters that do something: as made, they add nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # between those two
@pytest.mark.parametrize(
    "settings",
    [
        TuneSettings(rank=4, alpha=12.0),
        TuneSettings(rank=4, alpha=3.0, rslora=True, tune=PARTS),
        TuneSettings(rank=4, dora=True, tune=("decoder", "merger")),
    ],
    ids=["decoder", "all, rsLoRA", "DoRA"],
)
def test_an_adapter_is_the_same_in_peft_on_transformers(
    seeded_checkpoint: Callable[[int], Path], tmp_path: Path, settings: TuneSettings
) -> None:
    directory, example = seeded_checkpoint(0), encoded(seeded_checkpoint(0))[2]
    torch.manual_seed(2)  # adapters begin at random
    model = load_model(directory)
    batch = Batch.of([example])

    @torch.no_grad()
    def logits() -> torch.Tensor:
        features = model.encode_views(batch.patches, batch.views)
        return model.logits(model(batch.input_ids, batch.packed("cpu"), features))

    before = logits()
    layers = add_lora(model, settings)
    assert_close(logits(), before, 1e-5)
    moved(model)
    after = logits()
    assert (after - before).abs().max() > 1e-2 * before.abs().max()
    save_adapter(model, layers, tmp_path, str(directory))
    theirs = reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()

    @torch.no_grad()
    def their_logits() -> torch.Tensor:
        pixels = to_reference_layout(example.patches, ImageConfig())
        found: torch.Tensor = loaded(
            input_ids=example.input_ids[None],
            pixel_values=pixels.to(loaded.dtype),
            target_sizes=torch.tensor([[view.size.height, view.size.width] for view in example.views]),
            downsample_mode="16x",
        ).logits[0]
        return found

    assert_same_decoding(after, their_logits())
    # In fp32 each is up to 1.5e-4 from the truth, by what rounding makes of some adapters of every kind, and the bound
    # would hide a small mistake. In fp64 the two are less than 2e-9 apart, with whichever adapters they begin.
    model.double(), loaded.double()
    with in_fp64():
        assert_close(logits(), their_logits(), 1e-7)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == len(layers)
    assert all(isinstance(theirs.get_submodule(name), peft.tuners.lora.LoraLayer) for name in names)
