"""Pages → a row, and rows → tables: merge rules, columns, second tables, and cells that no spreadsheet runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.documents.merging import merge_pages
from pocketvlm.documents.schema import NAMES, read_schema, schema_of
from pocketvlm.documents.tables import write_rows
from pocketvlm.errors import ConfigError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
    max_leaves=4,
)


def page(data: Any, error: str | None = None, **confidence: float) -> dict[str, Any]:
    return {"data": data, "confidence": confidence, "error": error}


def test_pages_merge_by_the_stated_rules() -> None:
    pages = [
        {"data": {"shop": "", "paid": False, "items": [{"n": "a"}]}, "confidence": {"shop": 0.1, "items.0.n": 0.5}},
        {"data": {"shop": "x", "paid": True, "items": [{"n": "b"}]}, "confidence": {"shop": 0.9, "items.0.n": 0.6}},
        {"data": None, "confidence": {}},
    ]
    row = merge_pages([3, 4, 9], [{"error": None, **one} for one in pages[:2]] + [{**pages[2], "error": "bad"}])
    assert row["data"] == {"shop": "x", "paid": False, "items": [{"n": "a"}, {"n": "b"}]}
    assert row["confidence"] == {"shop": 0.9, "items.0.n": 0.5, "items.1.n": 0.6}
    assert row["error"] == "page 9: bad"


def test_a_value_stands_where_a_later_page_has_none() -> None:
    row = merge_pages([1, 2, 3], [page({"t": 0}, t=0.2), page({"t": None}, t=0.9), page({"t": ""}, t=0.8)])
    assert (row["data"], row["confidence"]) == ({"t": 0}, {"t": 0.2})
    row = merge_pages([1, 2], [page({"t": None}, t=0.2), page({"t": 0}, t=0.9)])
    assert (row["data"], row["confidence"]) == ({"t": 0}, {"t": 0.9})


@given(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3))
def test_one_page_is_its_own_row_and_failed_ones_add_nothing(data: dict[str, Any]) -> None:
    alone = merge_pages([1], [page(data)])
    assert alone == {"data": data, "confidence": {}, "error": None}
    assert merge_pages([1, 2], [page(data), page(None, "lost")])["data"] == data


FIRST = {"shop": '=HYPERLINK("x")', "items": [{"n": "-2", "p": -2.5}]}
SECOND = {"shop": "ß\x07", "items": [{"n": "b", "p": 1.0}, {"n": "c", "p": 2.0}]}
SURE = {"shop": 0.5, "items.0.n": 0.25}
ROWS = [
    {"file": "a.png", "pages": [1, 2], "data": FIRST, "confidence": SURE, "error": None},
    {"file": "b.png", "pages": [1], "data": SECOND, "confidence": {}, "error": None},
    {"file": "c.png", "pages": [], "data": None, "confidence": {}, "error": "broken"},
]
ITEM = {
    "type": "object",
    "properties": {"n": {"type": "string"}, "p": {"type": "number"}},
    "additionalProperties": False,
}
ROW = {
    "type": "object",
    "properties": {"shop": {"type": "string"}, "items": {"type": "array", "items": ITEM}},
    "additionalProperties": False,
}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_items_have_columns_or_a_table_of_their_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "wide.csv", lambda: ROWS)
    wide = read_csv(tmp_path / "wide.csv")
    assert [row["pages"] for row in wide] == ["1, 2", "1", ""]
    assert [row["data.items.1.n"] for row in wide] == ["", "c", ""]
    assert wide[0]["confidence.items.0.n"] == "0.25"
    write_rows(tmp_path / "two.csv", lambda: ROWS, arrays="table")
    assert not any("items" in name for name in read_csv(tmp_path / "two.csv")[0])
    items = read_csv(tmp_path / "two.items.csv")
    assert [(row["file"], row["array"], row["item"], row["p"]) for row in items] == [
        ("a.png", "items", "0", "-2.5"),
        ("b.png", "items", "0", "1.0"),
        ("b.png", "items", "1", "2.0"),
    ]


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", lambda: ROWS)
    row = read_csv(tmp_path / "rows.csv")[0]
    assert row["data.shop"] == '\'=HYPERLINK("x")'
    assert row["data.items.0.n"] == "'-2"
    assert row["data.items.0.p"] == "-2.5"  # a number is none
    openpyxl = pytest.importorskip("openpyxl", reason="Excel files need the extra tables")
    write_rows(tmp_path / "rows.xlsx", lambda: ROWS, arrays="table")
    sheet = openpyxl.load_workbook(tmp_path / "rows.xlsx")["rows"]
    head, first, second, _ = sheet.iter_rows()
    place = [cell.value for cell in head].index("data.shop")
    assert (first[place].value, first[place].data_type) == ('=HYPERLINK("x")', "s")
    assert second[place].value == "ß\ufffd"


def test_parquet_has_the_types_of_the_schema(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra tables")
    write_rows(tmp_path / "rows.parquet", lambda: ROWS, schema=ROW)
    found = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["data"] for row in found] == [row["data"] for row in ROWS]
    assert [row["pages"] for row in found] == [[1, 2], [1], []]
    free = {"type": "object", "properties": {"a": {"type": ["string", "integer"]}, "b": {"type": "integer"}}}
    free["additionalProperties"] = False
    row = {"file": "f", "page": 1, "data": {"a": 3, "b": 2**53 - 1}, "confidence": {"a": 0.5}, "error": None}
    write_rows(tmp_path / "free.parquet", lambda: [row] * 2500, schema=free)
    found = parquet.read_table(tmp_path / "free.parquet").to_pylist()
    assert len(found) == 2500
    assert found[-1]["data"] == {"a": "3", "b": 2**53 - 1}
    write_rows(tmp_path / "none.parquet", list, schema=free)
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_every_packaged_schema_is_one_and_words_are_fields() -> None:
    assert all(read_schema(name)["required"] for name in NAMES)
    assert list(read_schema("total: number, date: date")["properties"]) == ["total", "date"]
    assert schema_of(ROW) == ROW
    for bad in (3, {"type": "string"}, {"type": "object", "properties": {}}, "total"):
        with pytest.raises(ConfigError):
            schema_of(bad)


def test_json_lines_are_the_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", lambda: ROWS)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ROWS
