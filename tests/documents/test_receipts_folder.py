"""A folder of receipts in five kinds of files, six of them broken: what `benchmarks/receipts_folder.py` makes in large.

Kills and a second start are in `test_extract_command.py`; the benchmark does both together, ten times.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.command import run

from pocketvlm.processing.media.load_image import load_pages

SOURCE = Path(__file__).parents[2] / "benchmarks" / "receipts_folder.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("receipts_folder", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module by its name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "receipts_folder", module)
        spec.loader.exec_module(module)
    return module


def test_every_kind_shows_the_receipt_upright(benchmark: ModuleType, tmp_path: Path) -> None:
    receipts = benchmark.make_folder(tmp_path, 40, 1)  # all eight ways in which a JPEG may be turned
    for receipt in receipts:
        page = next(iter(load_pages(tmp_path / receipt.file)))
        picture = receipt.picture.convert("L").resize((24, 24))
        if receipt.file.endswith(".tif"):  # one bit a pixel: what is dark stays darker
            assert page.shape[:2] == (2 * receipt.picture.height, 2 * receipt.picture.width)
            found = benchmark.Image.fromarray(page).convert("L").resize((24, 24))
            assert np.corrcoef(np.asarray(found).ravel(), np.asarray(picture).ravel())[0, 1] > 0.7
        else:
            found = np.asarray(page).astype(int)
            assert found.shape == np.asarray(receipt.picture).shape
            assert np.abs(found - np.asarray(receipt.picture)).mean() < 3


def test_the_broken_ones_are_six_failures_and_every_other_has_a_row(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "rows.csv"
    folder.mkdir()
    receipts = benchmark.make_folder(folder, 5, 1)
    # As the benchmark asks, but for answers of a known length, whatever the model.
    schema = {**benchmark.SCHEMA, "properties": {"total": {"enum": ["1.00", "2.00"]}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    args = ("extract", str(folder), "--schema", str(tmp_path / "schema.json"), "--out", str(out))
    assert run(capsys, *args)[0] == 1
    assert list(benchmark.wrong_failures(out.with_name("rows.csv.failed.jsonl"))) == []
    assert list(benchmark.wrong_journal(out.with_name("rows.csv.journal"))) == []
    with out.open(newline="") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == len(receipts) + 6
    totals = benchmark.totals(out)
    for receipt in receipts:
        assert totals[receipt.file] in ("1.00", "2.00")
        assert rows[receipt.file]["pages"] == ("1, 2" if receipt.file.endswith(".pdf") else "1")
