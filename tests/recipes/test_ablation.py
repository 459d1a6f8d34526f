"""The four variants of the ablation: equal data, equal tokens, and costs in their order."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from pocketvlm.evaluation.results import Record
from pocketvlm.model.vision.early_compression import WINDOW
from recipes.nano.ablation import (
    SIDE,
    VARIANTS,
    VIEW,
    MeanPool,
    flops_of,
    make,
    report,
    score_of,
    seconds_of,
    variant_config,
)
from recipes.nano.run import Run, new_learner
from recipes.nano.settings import Optimiser


def made(out: Path, variant: str, **options: object) -> Run:
    return make(arguments(out, **options), variant)


def arguments(out: Path, **options: object) -> argparse.Namespace:
    base = out / "base"
    if not base.exists():
        Run(base, new_learner(1), 1, Optimiser()).write_model()
    values = {"align": 1, "joint": 1, "patches": 300, "processes": 1, "dtype": "float32"}
    return argparse.Namespace(base=base, out=out, **{**values, **options})


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_resume(tmp_path: Path, variant: str) -> None:
    first = made(tmp_path, variant)
    compression = {n: p.clone() for n, p in first.learner.model.vision_tower.vit_merger.named_parameters()}
    first.train()
    assert first.step == 2
    changed = [
        n for n, p in first.learner.model.vision_tower.vit_merger.named_parameters() if not p.equal(compression[n])
    ]
    assert bool(changed) == (variant != "pool")
    again = made(tmp_path, variant)
    assert again.step == 2
    for name, weight in again.learner.model.state_dict().items():
        assert weight.equal(first.learner.model.state_dict()[name]), name


def test_the_report_asks_every_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for variant in ("warm", "pool"):
        made(tmp_path, variant).train()
    report(arguments(tmp_path, variants=["warm", "pool"], count=4, seed=1))
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["variant"] for row in rows] == ["warm", "pool"]
    assert all(0 <= row["exact"] <= 1 and row["flops"] > 0 and row["seconds"] > 0 for row in rows)
    with pytest.raises(AssertionError, match="train it first"):
        report(arguments(tmp_path, variants=["none"], count=4, seed=1))


def test_variants_give_as_many_tokens_and_cost_in_their_order(tmp_path: Path) -> None:
    models = {variant: made(tmp_path, variant).learner.model.eval() for variant in VARIANTS}
    patches = torch.randint(0, 256, (SIDE * SIDE, 14, 14, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert {len(model.encode_views(patches, [VIEW])) for model in models.values()} == {SIDE * SIDE // WINDOW**2}
    flops = {variant: flops_of(model.config, variant) for variant, model in models.items()}
    assert flops["pool"] < flops["warm"] == flops["random"] < 0.55 * flops["none"]
    assert set(seconds_of({"warm": models["warm"]})) == {"warm"}
    last = models["none"].config.vision.num_hidden_layers - 1
    assert models["none"].config.insert_layer_id == last
    assert variant_config(models["none"].config, "warm").insert_layer_id == last  # what it is given stays


def test_pooling_is_the_mean_of_each_window() -> None:
    x = torch.arange(24.0).view(8, 3)
    assert torch.equal(MeanPool()(x), torch.stack([x[:4].mean(0), x[4:].mean(0)]))


def test_variants_begin_as_they_are_named(tmp_path: Path) -> None:
    states = {v: made(tmp_path, v).learner.model.vision_tower for v in ("none", "warm", "random")}
    weights = {v: tower.vit_merger.state_dict() for v, tower in states.items()}
    assert any(not torch.equal(weights["warm"][n], weights["random"][n]) for n in weights["warm"])
    assert all(torch.isfinite(w).all() for state in weights.values() for w in state.values())


def test_errors_are_counted_by_character() -> None:
    def record(answer: str, score: float) -> Record:
        of_example = {"task": "t", "index": 0, "id": "t/0", "subset": "", "metric": "strict", "question": "?"}
        usage = {"prompt_tokens": None, "visual_tokens": None, "completion_tokens": None, "seconds": 0.0}
        return Record(**of_example, expected=("abcd",), answer=answer, score=score, **usage)  # type: ignore[arg-type]

    assert score_of([record("abcd", 1.0), record("abd", 0.0)]) == {"exact": 0.5, "cer": 0.125}
    assert score_of([record("x" * 99, 0.0)])["cer"] == 1.0
