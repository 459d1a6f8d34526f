"""Documents → rows: a broken file among good ones, schemas, the merge rules, and what is bad use."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers.command import run

from pocketvlm.documents.extracting import merge_pages
from pocketvlm.documents.schema import NAMES, read_schema
from pocketvlm.errors import ConfigError

WORDS = ("--runtime", "torch", "--json", "--max-tokens", "48", "--schema", "total: string")


def test_a_broken_file_among_good_ones_is_a_row_with_its_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "rows.csv"
    folder.mkdir()
    shutil.copy("examples/receipt.png", folder / "a.png")
    (folder / "b.png").write_text("broken")
    status, text, err = run(capsys, "extract", str(folder), "--out", str(out), *WORDS)
    summary = json.loads(text)
    assert (status, summary["documents"], summary["pages"], summary["rows"]) == (1, 2, 1, 2)
    assert "b.png" in err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png"]  # nano may not get to the end of a.png
    assert "b.png" in rows[1]["error"]
    before = out.read_bytes()
    assert run(capsys, "extract", str(folder), "--out", str(out), *WORDS)[0] == 2
    assert run(capsys, "extract", str(folder), "--out", str(out), *WORDS, "--overwrite")[0] == 1
    assert out.read_bytes() == before


def test_pages_merge_by_the_stated_rules() -> None:
    pages = [
        {"data": {"shop": "", "items": [{"n": "a"}]}, "confidence": {"shop": 0.1, "items.0.n": 0.5}, "error": None},
        {"data": {"shop": "x", "items": [{"n": "b"}]}, "confidence": {"shop": 0.9, "items.0.n": 0.6}, "error": None},
        {"data": None, "confidence": {}, "error": "bad"},
    ]
    row = merge_pages(pages)
    assert row["data"] == {"shop": "x", "items": [{"n": "a"}, {"n": "b"}]}
    assert row["confidence"] == {"shop": 0.9, "items.0.n": 0.5, "items.1.n": 0.6}
    assert row["error"] == "page 3: bad"


def test_every_packaged_schema_is_one_and_words_are_fields() -> None:
    assert all(read_schema(name)["required"] for name in NAMES)
    assert list(read_schema("total: number, date: date")["properties"]) == ["total", "date"]
    for bad in ("total", "total: money", "none.json", "json:nothing"):
        with pytest.raises(ConfigError):
            read_schema(bad)
