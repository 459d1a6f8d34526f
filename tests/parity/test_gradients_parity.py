"""Losses and gradients of every parameter equal those of the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from helpers.invariants import assert_close
from helpers.training import assert_gradients_close, encoded, gradients
from torch.nn import functional as F

from pocketvlm.config import ImageConfig
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.names import published_name
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.training.batches import Batch
from pocketvlm.training.losses import answer_losses


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_losses_and_gradients_of_every_parameter_equal_the_references(
    seeded_checkpoint: Callable[[int], Path], mode: str
) -> None:
    directory = seeded_checkpoint(0)
    theirs = reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    ours = load_model(directory).requires_grad_(True)
    for example in encoded(directory, mode)[1:]:
        theirs.zero_grad()
        logits = theirs(
            input_ids=example.input_ids[None],
            pixel_values=to_reference_layout(example.patches, ImageConfig()),
            target_sizes=torch.tensor([[view.size.height, view.size.width] for view in example.views]),
            downsample_mode=mode,
        ).logits[0]
        loss = F.cross_entropy(logits.float(), example.targets)
        loss.backward()
        found = gradients(ours, [Batch.of([example])], example.learnt)
        assert_close(answer_losses(ours, Batch.of([example])).mean(), loss, 1e-5)
        compared: dict[str, torch.Tensor] = {}
        for name, _ in ours.named_parameters():
            expected = theirs.get_parameter(published_name(name)).grad
            if expected is None:  # of the layers that a 4x view leaves out
                assert name not in found or found[name].abs().max() == 0
                continue
            if name == "vision_tower.patch_embedding.weight":
                expected = expected.permute(0, 2, 3, 1).flatten(1)
            compared[name] = expected
        assert_gradients_close(found, compared)
        learning = {name for name, _ in ours.named_parameters()}
        left_out = {name for name in learning - compared.keys() if ".vit_merger." not in name}
        assert not left_out
        assert (len(compared) == len(learning)) == (mode == "16x")
