"""The recipe of nano: interrupted training resumes to the step, and learning happens where it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketvlm.model.checkpoint import load_model
from pocketvlm.synthetic import make_sample
from recipes.nano import train
from recipes.nano.data import SLOTS, Collator, character_targets
from recipes.nano.muon import orthogonalise
from recipes.nano.settings import CURRICULUM, IMAGE, Optimiser, Stage
from recipes.nano.train import Trainer


@pytest.fixture(autouse=True)
def short_curriculum(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (Stage("first", (("words", 0, 1.0),), 2, 0.0, language=2),)
    monkeypatch.setattr(train, "CURRICULUM", stages)


def trainer(out: Path) -> Trainer:
    out.mkdir(exist_ok=True)
    return Trainer(out, seed=0, rank=0, world=1, settings=Optimiser())


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "a")
    for _ in range(4):
        straight.train_step()
    first = trainer(tmp_path / "b")
    for _ in range(2):
        first.train_step()
    first.save()
    resumed = trainer(tmp_path / "b")
    resumed.resume()
    for _ in range(2):
        resumed.train_step()
    assert resumed.step == straight.step == 4
    for (name, a), b in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_saved_run_loads_as_a_checkpoint(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.train_step()
    t.save()
    loaded = dict(load_model(tmp_path / "run" / "model").named_parameters())
    for name, p in t.model.named_parameters():
        assert torch.equal(p.bfloat16().float(), loaded[name]), name


def test_training_can_begin_with_a_published_model(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.start_from(train.ASSETS, 0)
    published = dict(load_model(train.ASSETS).named_parameters())
    assert all(torch.equal(p, published[name]) for name, p in t.model.named_parameters())


def test_steps_for_the_tower_alone_leave_the_decoder_alone(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.train_step()  # step 0: both learn
    before = {n: p.clone() for n, p in t.model.named_parameters()}
    assert t.train_step() is None
    changed = {n for n, p in t.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert not any(name.startswith("language_model.") for name in changed)


def test_cooldown_ends_at_rate_zero(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.step, t.cooldown = 200, (200, 300)
    assert t.rate() == 1.0
    t.step = 250
    assert t.rate() == pytest.approx(0.5)
    t.step = 300
    assert t.rate() == 0.0


def test_targets_hold_every_character_of_a_picture_once(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    for mode in ("16x", "4x"):
        sample = make_sample("words", (1, 2), "train", 3)
        _, views, grid, sizes = t.collate.views(sample, mode)
        assert grid is None
        targets = character_targets(sample, views, grid, sizes)
        kept = sorted(targets[targets > 0].tolist())
        printed = sorted(ord(box.character) - 31 for box in sample.characters[0])
        assert kept == printed or targets[:, SLOTS - 1].any()  # a crowded cell keeps its first characters only


def test_slices_of_a_picture_see_its_characters_too(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    sample = make_sample("receipt", (3, 1), "train", 1)
    _, views, grid, sizes = t.collate.views(sample, "4x")
    assert grid is not None
    targets = character_targets(sample, views, grid, sizes)
    assert len(targets) == sum(view.visual_tokens for view in views)
    slices = targets[views[0].visual_tokens :]
    assert (slices > 0).sum() >= 0.9 * len(sample.characters[0])


def test_the_recipe_writes_the_prompt_that_inference_writes(tmp_path: Path) -> None:
    from pocketvlm.processing.chat import ChatTemplate
    from pocketvlm.processing.processor import Processor

    t = trainer(tmp_path / "run")
    template = ChatTemplate.from_directory(train.ASSETS, t.tokenizer.control_tokens)
    processor = Processor(t.tokenizer, template, IMAGE, t.model.config)
    for level in (0, 1):
        sample = make_sample("receipt", (5, level), "train", level)
        question, answer, _ = sample.questions[0]
        content = [{"type": "image", "image": np.array(sample.image)}, {"type": "text", "text": question}]
        inputs = processor([{"role": "user", "content": content}], downsample_mode="4x")
        packed = t.collate.pack([(sample, "4x", [0])])
        prompt = packed.input_ids[: len(inputs.input_ids)]
        assert torch.equal(prompt, inputs.input_ids)
        assert torch.equal(packed.patches, inputs.patches)
        expected = [*t.tokenizer.encode_plain(answer), t.tokenizer.control_id("<|im_end|>")]
        assert packed.targets[packed.targets >= 0].tolist() == expected


def test_every_stage_draws_and_packs(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    for i, stage in enumerate(CURRICULUM):
        data = t.collate(dataclasses.replace(stage), (0, i), 3)
        assert len(data.patches) == sum(v.patches for v in data.views)
        assert data.batch.tokens == len(data.input_ids) == len(data.targets)
        assert (data.targets >= 0).any()


def test_the_collator_draws_the_same_step_again(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    first, second = (Collator(t.tokenizer, IMAGE)(CURRICULUM[3], (1, 2, 3), 4) for _ in range(2))
    assert torch.equal(first.patches, second.patches)
    assert torch.equal(first.input_ids, second.input_ids)


def test_muon_makes_singular_values_nearly_equal() -> None:
    for shape in ((8, 30), (30, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert 0.3 < values.min() <= values.max() < 1.3
