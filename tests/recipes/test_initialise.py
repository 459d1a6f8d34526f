"""First weights of nano: from nothing, or from a model that lacks layers or tokens."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.invariants import assert_close

from pocketvlm.errors import CheckpointError
from pocketvlm.model.checkpoint import load_model, save_model
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from recipes.nano.curriculum import CURRICULUM
from recipes.nano.data import Collator
from recipes.nano.initialise import READER, RESIDUAL_OUTPUTS, position_waves, start_from
from recipes.nano.run import Run, new_learner
from recipes.nano.settings import ASSETS, IMAGE, TEXT_FILES, Optimiser
from recipes.nano.state import main, pack, unpack

TOKENIZER = Tokenizer.from_directory(ASSETS)
COLLATE = Collator(TOKENIZER, IMAGE)


def published(folder: Path) -> Path:
    """A checkpoint of a model of the recipe."""
    Run(folder, new_learner(1), 1, Optimiser()).write_model()
    return folder / "model"


def test_training_can_begin_with_a_published_model(tmp_path: Path) -> None:
    learner, folder = new_learner(0), published(tmp_path)
    start_from(learner.model, learner.reader, folder, TOKENIZER)
    published_weights = dict(load_model(folder).named_parameters())
    rows = "language_model.embed_tokens.weight"
    for name, p in learner.model.named_parameters():
        if name != rows:
            assert torch.equal(p, published_weights[name]), name


def test_a_packed_run_is_unpacked_to_within_half_a_step_of_eight_bits(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", new_learner(1), 1, Optimiser())
    run.write_model()
    pack(tmp_path / "run", tmp_path / "packed")
    assert (tmp_path / "packed").stat().st_size < sum(p.numel() for p in run.learner.parameters()) * 1.1
    unpack(tmp_path / "packed", tmp_path / "again")
    learner = new_learner(2)
    start_from(learner.model, learner.reader, tmp_path / "again", TOKENIZER)
    kept = dict(run.learner.named_parameters())
    for name, p in learner.named_parameters():
        rows = kept[name].detach().flatten(1) if p.dim() > 1 else kept[name].detach()[None]
        step = 1 / 254 if p.dim() > 1 else 0
        within = rows.abs().amax(1) * (
            1.01 * step + 2 * 2**-8
        )  # a run keeps its model in bfloat16, and so does the other
        off = (p.detach() - kept[name].detach()).abs().view(len(rows), -1).amax(1)
        assert (off <= within + 1e-6).all(), name


@pytest.mark.parametrize("what", ["pack", "unpack"])
def test_what_cannot_be_packed_or_unpacked_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "text").write_text("no weights", encoding="utf-8")
    for source in ("missing", "text"):
        monkeypatch.setattr(sys, "argv", ["state", what, str(tmp_path / source), str(tmp_path / "out")])
        with pytest.raises(SystemExit, match=source) as ended:
            main()
        assert "\n" not in str(ended.value)
        assert not (tmp_path / "out").exists()


def test_added_layers_change_nothing_at_first() -> None:
    config = new_learner(0).config
    short = dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_hidden_layers=6))
    torch.manual_seed(1)
    small, large = MiniCPMV(short), MiniCPMV(config)
    known = dict(small.named_parameters())
    with torch.no_grad():
        for name, p in large.named_parameters():
            if name in known:
                p.copy_(known[name])
            elif any(f".{leaf}." in name for leaf in RESIDUAL_OUTPUTS):
                p.zero_()
    data = COLLATE(CURRICULUM[3], (1,), 300)
    with torch.no_grad():
        a, b = (m.encode_views(data.patches, data.views) for m in (small, large))
    assert_close(a, b)


def test_tokens_keep_their_embeddings_by_their_text(tmp_path: Path) -> None:
    learner, folder = new_learner(0), published(tmp_path)
    start_from(learner.model, learner.reader, folder, TOKENIZER)
    known = dict(load_model(folder).named_parameters())["language_model.embed_tokens.weight"]
    rows, vocabulary = learner.model.language_model.embed_tokens.weight, TOKENIZER.vocabulary()
    assert len(rows) == TOKENIZER.vocab_size
    for token, row in vocabulary.items():
        assert torch.equal(rows[row], known[row]), token


def test_a_model_that_compresses_elsewhere_is_refused(tmp_path: Path) -> None:
    """Its layers would stand on the wrong side of the compression, and read nothing."""
    learner = new_learner(1)
    vision = learner.config.vision
    shorter = dataclasses.replace(vision, num_hidden_layers=vision.num_hidden_layers - 2)
    before = MiniCPMV(
        dataclasses.replace(learner.config, vision=shorter, insert_layer_id=1), IMAGE.image_mean, IMAGE.image_std
    )
    save_model(before, tmp_path)
    for name in TEXT_FILES:
        shutil.copy(ASSETS / name, tmp_path)
    with pytest.raises(CheckpointError, match="Let it grow first"):
        start_from(learner.model, learner.reader, tmp_path, TOKENIZER)


def test_position_waves_tell_every_place_and_can_be_added(tmp_path: Path) -> None:
    learner, folder = new_learner(0), published(tmp_path)
    model = learner.model
    waves = position_waves(model)
    side = model.config.vision.positions_per_side
    apart = torch.cdist(waves, waves) + torch.eye(len(waves)) * 9
    assert apart.min() > 0.1
    # Neighbours are alike, rows and columns equally strong.
    table = waves.view(side, side, -1)
    assert (table[1:] - table[:-1]).norm(dim=-1).mean() < 0.3 * apart.mean()
    rows, columns = table.mean(1).norm(), table.mean(0).norm()
    assert 0.9 < rows / columns < 1.1
    start_from(model, learner.reader, folder, TOKENIZER)
    before = model.vision_tower.position_embedding.weight.clone()
    start_from(model, learner.reader, folder, TOKENIZER, add_positions=True)
    torch.testing.assert_close(model.vision_tower.position_embedding.weight - before, waves)


def test_heads_that_a_run_did_not_have_stay_as_they_are_and_those_of_another_recipe_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = Run(tmp_path / "run", new_learner(1), 1, Optimiser())
    run.write_model()
    kept = load_file(tmp_path / "run" / READER)
    save_file({name: p for name, p in kept.items() if not name.startswith("parts.")}, tmp_path / "run" / READER)
    learner = new_learner(2)
    before = learner.reader.parts.patches.weight.clone()
    start_from(learner.model, learner.reader, tmp_path / "run", TOKENIZER)
    assert learner.reader.parts.patches.weight.equal(before)
    assert learner.reader.cells.characters.weight.equal(kept["cells.characters.weight"])
    save_file({**kept, "asked.no.more": torch.zeros(3)}, tmp_path / "run" / READER)
    start_from(learner.model, learner.reader, tmp_path / "run", TOKENIZER)
    assert learner.reader.parts.patches.weight.equal(kept["parts.patches.weight"])
    for wrong in ({"other": kept["cells.characters.bias"]}, {}):
        save_file(wrong, tmp_path / "run" / READER)
        with pytest.raises(CheckpointError, match="heads of another recipe"):
            start_from(learner.model, learner.reader, tmp_path / "run", TOKENIZER)
