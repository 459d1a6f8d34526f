"""Rows of the table are those of the file, and a file that ends too early is said to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pocketvlm.engine.runners.embedding_table import EmbeddingTable
from pocketvlm.errors import CheckpointError


@pytest.fixture(params=["as on Linux", "as on Windows"], autouse=True)
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as on Windows":
        monkeypatch.delattr(os, "preadv", raising=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,), (1, 0)])
def test_rows_are_those_of_the_file(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal((50, 12)).astype(dtype)
    values.tofile(tmp_path / "table")
    ids = np.random.default_rng(1).integers(0, 50, shape)
    got = EmbeddingTable(tmp_path / "table", dtype, 50, 12)(ids)
    assert got.dtype == np.float32
    assert np.array_equal(got, values.astype(np.float32)[ids])


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    np.zeros((9, 4), np.float16).tofile(tmp_path / "table")
    table = EmbeddingTable(tmp_path / "table", np.float16, 10, 4)
    with pytest.raises(CheckpointError, match="ends before row 9"):
        table(np.array([3, 9]))
    for outside in (-1, 10):
        with pytest.raises(IndexError, match="0 to 9"):
            table(np.array([outside]))
