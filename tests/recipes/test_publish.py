"""Weights that are published keep fewer bits, so that a wheel of them is small."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketvlm.model.checkpoint import load_model
from recipes.nano import publish
from recipes.nano.publish import SIGNIFICANT_BITS, rounded
from recipes.nano.run import new_learner, write_run


@pytest.mark.parametrize("bits", [3, SIGNIFICANT_BITS, 8])
def test_weights_are_rounded_to_the_nearest_number_of_so_many_bits(bits: int) -> None:
    weights = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-20, 12).repeat(128)
    found = rounded(weights, bits)
    assert (found - weights).abs().le(weights.abs() * 2.0**-bits).all()
    assert torch.equal(rounded(found, bits), found)
    assert torch.equal(found.bfloat16().float(), found)
    fractions = (torch.frexp(found).mantissa * 2**bits).double()
    assert torch.equal(fractions, fractions.round())


def test_special_numbers_stay_as_they_are() -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -2.0, 2.0**-100])
    assert torch.equal(rounded(special), special)


def test_what_is_rounded_is_smaller_when_it_is_compressed() -> None:
    weights = torch.randn(1 << 16, generator=torch.Generator().manual_seed(2)) * 0.05

    def size(values: torch.Tensor) -> int:
        return len(zlib.compress(np.ascontiguousarray(values.bfloat16().view(torch.int16).numpy()).tobytes()))

    assert size(rounded(weights)) < 0.87 * size(weights)


def test_matrices_are_rounded_and_vectors_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = new_learner(1)
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(torch.rand_like(p) / 3)
    write_run(learner, tmp_path / "run")
    (tmp_path / "run/training.jsonl").write_text("")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/confidence.json").write_text("{}")
    monkeypatch.setattr(publish, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(publish, "__file__", str(tmp_path / "publish.py"))
    monkeypatch.setattr(sys, "argv", ["publish", "--run", str(tmp_path / "run")])
    publish.main()
    before = dict(load_model(tmp_path / "run/model").named_parameters())
    for name, p in load_model(tmp_path / "assets").named_parameters():
        assert torch.equal(p, rounded(before[name]) if p.dim() >= 2 else before[name]), name
    assert not (tmp_path / "assets/confidence.json").exists()
