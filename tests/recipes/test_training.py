"""The recipe of nano: interrupted training resumes to the step, and learning happens where it should."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.invariants import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.vision.warm_start import warm_start_compression
from recipes.nano import curves, train
from recipes.nano import trainer as trainer_module
from recipes.nano.curriculum import COMPRESSED, CURRICULUM, Share, Stage, scaled, stage_number
from recipes.nano.curves import read_log
from recipes.nano.initialise import RESIDUAL_OUTPUTS, position_waves, start_from
from recipes.nano.loader import LAG, Schedule, Steps, batches
from recipes.nano.muon import orthogonalise
from recipes.nano.settings import ASSETS, Optimiser
from recipes.nano.train import blend
from recipes.nano.trainer import Trainer

WORDS = (Share("words", 0, 1.0),)
SHORT = (Stage("first", WORDS, 100, language=2),)


def trainer(out: Path, stages: tuple[Stage, ...] = SHORT) -> Trainer:
    out.mkdir(exist_ok=True)
    return Trainer(out, seed=0, rank=0, world=1, settings=Optimiser(), stages=stages)


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in t.model.named_parameters()}


def changed(t: Trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in t.model.named_parameters() if not torch.equal(p, before[name])}


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


def test_a_change_of_stage_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.nano.loader.LAG", 2)
    stages = (Stage("a", WORDS, 60, steps=1), Stage("b", WORDS, 90, inserts=True, rates=COMPRESSED))
    straight, stopped = trainer(tmp_path / "a", stages), trainer(tmp_path / "b", stages)
    for _ in range(5):
        straight.train_step()
    for _ in range(2):  # the change is due, and has not happened
        stopped.train_step()
    assert stopped.stage.name == "a"
    stopped.save()
    resumed = trainer(tmp_path / "b", stages)
    resumed.resume()
    for _ in range(3):
        resumed.train_step()
    assert resumed.stage.name == straight.stage.name == "b"
    assert not changed(resumed, weights(straight))


def test_a_run_is_continued_as_it_was_begun(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.save()
    other = Trainer(tmp_path / "run", seed=1, rank=0, world=1, settings=Optimiser(), stages=SHORT)
    with pytest.raises(SystemExit, match="--seed 0"):
        other.resume()


def test_a_saved_run_is_a_whole_checkpoint(tmp_path: Path) -> None:
    import pocketvlm

    t = trainer(tmp_path / "run")
    t.train_step()
    t.save()
    loaded = dict(load_model(tmp_path / "run" / "model").named_parameters())
    for name, p in t.model.named_parameters():
        assert torch.equal(p.bfloat16().float(), loaded[name]), name
    answer = pocketvlm.load(tmp_path / "run" / "model").ask(np.zeros((60, 80, 3), np.uint8), "?", max_tokens=2)
    assert answer.usage.completion_tokens <= 2


def test_training_can_begin_with_a_published_model(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    start_from(t.model, t.reader, ASSETS, t.tokenizer)
    published = dict(load_model(ASSETS).named_parameters())
    rows = "language_model.embed_tokens.weight"
    for name, p in t.model.named_parameters():
        if name in published and name != rows:
            assert torch.equal(p, published[name]), name


def test_added_layers_change_nothing_at_first(tmp_path: Path) -> None:
    from pocketvlm.model.vlm import MiniCPMV

    config = trainer(tmp_path / "run").model.config
    short = dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_hidden_layers=3))
    torch.manual_seed(1)
    small, large = MiniCPMV(short), MiniCPMV(config)
    known = dict(small.named_parameters())
    with torch.no_grad():
        for name, p in large.named_parameters():
            if name in known:
                p.copy_(known[name])
            elif any(f".{leaf}." in name for leaf in RESIDUAL_OUTPUTS):
                p.zero_()
    t = trainer(tmp_path / "run")
    data = t.collate(CURRICULUM[3], (1,), 300)
    with torch.no_grad():
        a, b = (m.encode_views(data.patches, data.views) for m in (small, large))
    assert_close(a, b)


def test_tokens_keep_their_embeddings_by_their_text(tmp_path: Path) -> None:
    from pocketvlm.processing.prompt.tokenizer import Tokenizer

    t = trainer(tmp_path / "run")
    start_from(t.model, t.reader, ASSETS, t.tokenizer)
    known = dict(load_model(ASSETS).named_parameters())["language_model.embed_tokens.weight"]
    old, new = Tokenizer.from_directory(ASSETS).vocabulary(), t.tokenizer.vocabulary()
    rows = t.model.language_model.embed_tokens.weight
    assert len(rows) == t.tokenizer.vocab_size
    for token in old.keys() & new.keys():
        assert torch.equal(rows[new[token]], known[old[token]]), token


def test_steps_for_the_tower_alone_leave_the_decoder_alone(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.train_step()  # step 0: both learn
    before = weights(t)
    assert "answers" not in t.train_step()
    moved = changed(t, before)
    assert moved
    assert not any(name.startswith("language_model.") for name in moved)


def test_the_alignment_moves_the_compression_and_nothing_else(tmp_path: Path) -> None:
    stages = (Stage("alignment", WORDS, 60, rates=COMPRESSED, learns="compression"),)
    t = trainer(tmp_path / "run", stages)
    before = weights(t)
    t.train_step()
    assert {name.split(".")[0] for name in changed(t, before)} == {"vision_tower", "merger"}
    assert all("vit_merger" in name or name.startswith("merger.") for name in changed(t, before))


def test_a_stage_that_inserts_the_compression_starts_it_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    t = trainer(tmp_path / "run", (Stage("a", WORDS, 60), Stage("b", WORDS, 60, inserts=True)))
    monkeypatch.setattr(
        trainer_module, "warm_start_compression", lambda tower: started.append(t.step) or warm_start_compression(tower)
    )
    t.schedule.next = (1, 1)
    for _ in range(3):
        t.train_step()
    assert started == [1]


def test_the_rate_falls_to_zero(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    t.step, t.cooldown = 300, (200, 500)
    assert t.rate() == pytest.approx(2 / 3)
    t.step = 200  # a cool-down may begin at once: then it warms up first
    assert t.rate() < 0.05
    t.step = 500
    assert t.rate() == 0.0
    t.deadline, t.seconds = 100.0, 75.0
    assert t.rate() == pytest.approx(0.25)


@given(asked=st.lists(st.integers(0, 400), max_size=6).map(sorted))
def test_stages_follow_each_other_in_order_and_late_enough(asked: list[int]) -> None:
    schedule = Schedule(stages=3)
    drawn = iter(schedule)
    ahead: list[tuple[int, int]] = []
    seen = []
    for step in range(500):
        while len(ahead) < LAG:  # workers have drawn everything that they may
            ahead.append(next(drawn))
        schedule.arrive(step)
        number, stage = ahead.pop(0)
        assert (number, stage) == (step, schedule.stage_at(step))
        seen.append(stage)
        if step in asked:
            schedule.ask(step)
    assert seen == sorted(seen)
    assert max(seen) <= min(2, len(asked))


def test_workers_draw_what_the_trainer_would(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    steps = Steps(t.collate, (Stage("words", WORDS, 60),), 3, 0)
    alone, helped = batches(steps, Schedule(1), 0), batches(steps, Schedule(1), 2)
    for _ in range(5):
        a, b = next(alone), next(helped)
        assert torch.equal(a.patches, b.patches)
        assert torch.equal(a.input_ids, b.input_ids)


def test_muon_makes_singular_values_nearly_equal() -> None:
    for shape in ((8, 30), (30, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert 0.3 < values.min() <= values.max() < 1.3


def test_the_curriculum_goes_from_uncompressed_to_hybrid() -> None:
    kinds = [(s.rates.all_4x, s.rates.all_16x) for s in CURRICULUM]
    assert kinds == sorted(
        kinds, key=lambda k: ((1.0, 0.0), (0.0, 1.0)).index(k) if k in ((1.0, 0.0), (0.0, 1.0)) else 2
    )
    assert [s.name for s in CURRICULUM if s.inserts] == ["alignment"]
    assert CURRICULUM[stage_number("alignment")].learns == "compression"
    assert [s.patches * 2 for s in CURRICULUM] == [s.patches for s in scaled(CURRICULUM, 2)]
    assert not CURRICULUM[-1].mark


@settings(max_examples=30)
@given(values=st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_moving_averages_stay_between_the_extremes(values: list[float]) -> None:
    means: dict[str, object] = {}
    for value in values:
        blend(means, {"loss": value, "tasks": {"a": value}})
    for mean in (means["loss"], means["tasks"]["a"]):  # type: ignore[index]
        assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_a_log_that_went_back_to_a_checkpoint_counts_once(tmp_path: Path) -> None:
    lines = [(25, 10), (50, 20), (75, 30), (50, 21), (75, 31)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}, "seconds": {seconds}}}\n' for step, seconds in lines))
    assert [(line["step"], line["seconds"]) for line in read_log(path)] == [(25, 10), (50, 21), (75, 31)]


def test_runs_that_follow_each_other_in_a_log_are_counted_on(tmp_path: Path) -> None:
    lines = [(25, 10), (50, 20), (25, 8), (50, 16), (75, 24), (75, 25)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}, "seconds": {seconds}}}\n' for step, seconds in lines))
    reports = [(line["step"], line["seconds"]) for line in read_log(path)]
    assert reports == [(25, 10), (50, 20), (25, 28), (50, 36), (75, 45)]


def test_curves_are_drawn_from_a_log(tmp_path: Path) -> None:
    from PIL import Image

    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 25, "stage": "a", "seconds": 10, "characters": 3.0, "rate": 0.1}\n'
        '{"step": 50, "stage": "b", "seconds": 20, "characters": 2.0, "answers": 4.0, "tasks": {"words": 4}}\n'
    )
    curves.draw(read_log(log), tmp_path / "curves.png")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5


def test_a_stage_of_so_many_steps_lasts_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.nano.loader.LAG", 2)
    t = trainer(tmp_path, (Stage("a", WORDS, 60, steps=5), Stage("b", WORDS, 60)))
    names = []
    for _ in range(8):
        t.train_step()
        names.append(t.stages[t.schedule.stage].name)
    assert names == ["a"] * 5 + ["b"] * 3


def test_insertion_forgets_moments_that_have_aged(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    compression = list(t.model.vision_tower.vit_merger.parameters())
    for p in t.parameters:
        p.grad = torch.ones_like(p)
    t.update(t.parameters)
    assert any(p in o.state for o in t.optimisers for p in compression)
    t.insert_compression()
    assert not any(p in o.state for o in t.optimisers for p in compression)
    others = list(t.model.language_model.parameters())
    assert any(p in o.state for o in t.optimisers for p in others)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recipes.nano.train", "--processes", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_that_begins_at_the_alignment_inserts_the_compression(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    t = trainer(base)
    torch.nn.init.zeros_(t.model.vision_tower.vit_merger.linear_1.weight)
    t.save()
    again = run_command("--out", str(out), "--init", str(base), "--stage", "alignment", "--steps", "1")
    assert again.returncode == 1
    assert "give another one" in again.stderr
    done = run_command("--out", str(out), "--init", str(base), "--stage", "alignment", "--steps", "1", "--seed", "1")
    assert done.returncode == 0, done.stderr
    tower = load_model(out / "model").vision_tower
    assert tower.vit_merger.linear_1.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--minutes", "1", "--cooldown", "9"), "not allowed with"),
        (("--stage", "joint"), "--init"),
        (("--until", "9", "--steps", "1"), "none is"),
    ],
)
def test_options_that_would_not_be_honoured_are_refused(
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["train", "--processes", "1", "--out", out, *arguments])
    with pytest.raises(SystemExit) as refused:
        train.main()
    assert refused.value.code not in (0, None)
    assert message in f"{refused.value.code} {capsys.readouterr().err}"


def test_position_waves_tell_every_place_and_can_be_added(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run")
    waves = position_waves(t.model)
    side = t.model.config.vision.positions_per_side
    apart = torch.cdist(waves, waves) + torch.eye(len(waves)) * 9
    assert apart.min() > 0.1
    # Neighbours are alike, rows and columns equally strong.
    table = waves.view(side, side, -1)
    assert (table[1:] - table[:-1]).norm(dim=-1).mean() < 0.3 * apart.mean()
    rows, columns = table.mean(1).norm(), table.mean(0).norm()
    assert 0.9 < rows / columns < 1.1
    start_from(t.model, t.reader, ASSETS, t.tokenizer)
    before = t.model.vision_tower.position_embedding.weight.clone()
    start_from(t.model, t.reader, ASSETS, t.tokenizer, add_positions=True)
    torch.testing.assert_close(t.model.vision_tower.position_embedding.weight - before, waves)
