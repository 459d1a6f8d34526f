"""First weights: from nothing, or from a model of the same widths that may have fewer layers and another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketvlm.errors import CheckpointError
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.vision.warm_start import warm_start_compression
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.prompt.tokenizer import Tokenizer

READER = "reader.safetensors"  # in the folder of a run: the heads of the dense losses
WAVES = 2.0  # of each wave: all of them are then a ninth of the patches
RESIDUAL_OUTPUTS = ("o_proj", "out_proj", "down_proj", "fc2")


def initialise(model: MiniCPMV) -> None:
    """Fan-in scaled normal weights, zero-mean patch filters at double size, then the warm start of the compression."""
    for name, p in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(p)
        elif p.dim() >= 2:
            nn.init.normal_(p, std=0.02 if "embed" in name else p[0].numel() ** -0.5)
    filters = model.vision_tower.patch_embedding.weight
    with torch.no_grad():
        filters.normal_(std=2 * filters.shape[1] ** -0.5)
        filters -= filters.mean(1, keepdim=True)
        for module in model.modules():  # residual branches start small
            for leaf in RESIDUAL_OUTPUTS:
                if isinstance(linear := getattr(module, leaf, None), nn.Linear):
                    linear.weight *= 0.3
        model.vision_tower.position_embedding.weight.add_(position_waves(model))
    warm_start_compression(model.vision_tower)


def position_waves(model: MiniCPMV) -> Tensor:
    """[positions, width] slow sines and cosines of row and column, in random directions.

    Patches are twenty times as large as freshly drawn positions, which grow by the learning rate a step at most: after
    30,000 steps without these, rows were still a sixtieth of the patches, and no box was ever right.
    """
    table = model.vision_tower.position_embedding.weight
    side = model.config.vision.positions_per_side
    place = torch.arange(side) / side
    waves = [wave(torch.pi * turns * place) for turns in (0.5, 1, 2, 4) for wave in (torch.sin, torch.cos)]
    line = torch.stack(waves, dim=1)
    both = torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], dim=1)  # of row, then of column
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(table.shape[1], both.shape[1], generator=generator)).Q
    return WAVES * (both - both.mean(0)) @ directions.T


@torch.no_grad()
def start_from(
    model: MiniCPMV,
    reader: nn.Module,
    checkpoint: Path,
    tokenizer: Tokenizer,
    *,
    add_positions: bool = False,
    compressed_elsewhere: bool = False,
) -> None:
    """Take over the weights of `checkpoint`: a model's folder, or that of a run (then `reader`, the heads of the dense
    losses, are taken over as well).

    Layers that it lacks are added behind its last ones and start as the identity (their residual branches give zero).
    Tokens keep their embeddings by their text; those it lacks start at the mean of the others.

    Raises:
        CheckpointError: it compresses views behind another layer, or the heads are those of another recipe.

    Args:
        compressed_elsewhere: take it over though it compresses views behind another layer.
        add_positions: add `position_waves`, which models trained before there were any lack.
    """
    if (checkpoint / READER).is_file():
        _take_heads(reader, load_file(checkpoint / READER))
        checkpoint = checkpoint / "model"
    before = load_model(checkpoint)
    if before.config.insert_layer_id != model.config.insert_layer_id and not compressed_elsewhere:
        was, is_now = before.config.insert_layer_id, model.config.insert_layer_id
        raise CheckpointError(
            f"{checkpoint} compresses behind layer {was}, nano of today behind layer {is_now}",
            hint="Let it grow first: python -m recipes.nano.grow.",
        )
    known = dict(before.named_parameters())
    embedding = "language_model.embed_tokens.weight"
    for name, p in model.named_parameters():
        if name == embedding:
            _take_tokens(p, known[name], tokenizer, Tokenizer.from_directory(checkpoint))
        elif name in known:
            p.copy_(known[name])
        elif any(f".{leaf}." in name for leaf in RESIDUAL_OUTPUTS):
            p.zero_()
    if add_positions:
        model.vision_tower.position_embedding.weight.add_(position_waves(model))


def _take_heads(reader: nn.Module, known: Mapping[str, Tensor]) -> None:
    """The heads that the run had; those it had not stay as they are, and those that nobody asks any more are left."""
    missing, unexpected = reader.load_state_dict(known, strict=False)
    if len(missing) == len(reader.state_dict()):
        names = ", ".join(sorted(unexpected)[:3])
        raise CheckpointError(f"{READER} holds the heads of another recipe ({names})", hint="Give a model instead.")


def _take_tokens(rows: nn.Parameter, known: torch.Tensor, tokenizer: Tokenizer, other: Tokenizer) -> None:
    where = other.vocabulary()
    rows.copy_(known.mean(0).expand_as(rows))
    for token, row in tokenizer.vocabulary().items():
        if token in where:
            rows[row] = known[where[token]]
