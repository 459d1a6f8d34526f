"""Pages → a row, and rows → tables: merge rules, columns, second tables, and cells that no spreadsheet runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pocketvlm.api.answers import Answer, TokenLogprob, Usage
from pocketvlm.documents.confidence import confidences
from pocketvlm.documents.extracting import EXACT, bounded, extraction
from pocketvlm.documents.merging import merge_pages
from pocketvlm.documents.schema import NAMES, read_schema, schema_of
from pocketvlm.documents.tables import _csv_lines, write_rows
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
    row = merge_pages([1, 2], [page({"t": None}, t=0.2), page({"t": 5})])
    assert (row["data"], row["confidence"]) == ({"t": 5}, {})
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
    assert [(row["file"], row["array"], row["item"], row["value.p"]) for row in items] == [
        ("a.png", "items", "0", "-2.5"),
        ("b.png", "items", "0", "1.0"),
        ("b.png", "items", "1", "2.0"),
    ]
    assert items[0]["confidence.n"] == "0.25"


def test_no_property_name_takes_the_place_of_another(tmp_path: Path) -> None:
    item = {"pages": 3, "file": "own", "item": "x", "array": "y"}
    data = {"a.b": "1", "a": {"b": "2"}, "pages": "123", "items": [item], "2024": 5}
    sure = {"a\\.b": 0.25, "a.b": 0.5, "2024": 0.75, "items.0.pages": 0.125}
    row = {"file": "f", "page": 1, "data": data, "confidence": sure, "error": None}
    for arrays in ("columns", "table"):
        write_rows(tmp_path / "rows.csv", lambda: [row], arrays=arrays)
        (found,) = read_csv(tmp_path / "rows.csv")
        assert (found["data.a\\.b"], found["data.a.b"], found["data.pages"], found["page"]) == ("1", "2", "123", "1")
        assert [found[f"confidence.{name}"] for name in ("a\\.b", "a.b", "2024")] == ["0.25", "0.5", "0.75"]
        assert list(found)[-1] == "error"
    (found,) = read_csv(tmp_path / "rows.items.csv")
    assert [found[name] for name in ("file", "page", "array", "item")] == ["f", "1", "items", "0"]
    assert [found[f"value.{name}"] for name in item] == ["3", "own", "x", "y"]
    assert found["confidence.pages"] == "0.125"


def test_no_cell_breaks_a_row(tmp_path: Path) -> None:
    texts = ["x\r=1", "x\n=1", "\n=1", 'a"b,c', "\r\n"]
    rows = [{"file": "a\r=2", "page": 1, "data": {"t": text}, "confidence": {}, "error": None} for text in texts]
    write_rows(tmp_path / "rows.csv", lambda: rows)
    found = read_csv(tmp_path / "rows.csv")
    assert [row["data.t"].removeprefix("'") for row in found] == texts
    assert not any(cell.startswith(("=", "\n", "\r")) for row in found for cell in row.values())
    assert {row["file"] for row in found} == {"a\r=2"}


def test_more_columns_than_excel_has_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="Excel files need the extra tables")
    row = {"file": "f", "page": 1, "data": {"a": list(range(17_000))}, "confidence": {}, "error": None}
    with pytest.raises(ConfigError, match="Excel takes 16384"):
        write_rows(tmp_path / "wide.xlsx", lambda: [row])
    assert not list(tmp_path.iterdir())


def test_numbers_that_no_table_holds_are_errors_of_their_page() -> None:
    task = extraction(ROW, "p", {})

    def found(text: str) -> dict[str, Any]:
        return task.value_of(Answer(text, Usage(1, 0, 5), {}, "stop"))

    for text, said in (
        ('{"a": 1e999}', "beyond all"),
        ('{"a": ' + 400 * "9" + "}", "400 digits"),
        ('{"a": ' + 5000 * "9" + "}", "5000 digits"),
        ('{"a": 1', "cut off after 5 tokens"),
        ("[" * 100_000, "cut off"),
    ):
        value = found(text)
        assert value["data"] is None
        assert said in value["error"]
    assert found('{"a": 12, "b": 1.5e3}')["data"] == {"a": 12, "b": 1500.0}


def test_schemas_are_closed_and_whole_numbers_bounded() -> None:
    nullable = {"type": ["integer", "null"]}
    given = {"type": "object", "properties": {"a": nullable, "b": {"$ref": "#/$defs/B"}}, "$defs": {"B": ITEM}}
    made = bounded(given)
    assert made["properties"]["a"] == {**nullable, "minimum": -EXACT, "maximum": EXACT}
    assert made["additionalProperties"] is False
    assert given["properties"]["a"] == nullable  # as it was
    own = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 3}}, "additionalProperties": True}
    assert bounded(own) == own


NAMED = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}, "required": ["name"]}
COUNTED = {"properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["count"]}


@pytest.mark.parametrize(
    "schema",
    [
        {**NAMED, "anyOf": [COUNTED, {"properties": {"none": {"const": True}}, "required": ["none"]}]},
        {**NAMED, "allOf": [{"$ref": "#/$defs/Counted"}], "$defs": {"Counted": COUNTED}},
        {"type": "object", "allOf": [NAMED, {"anyOf": [COUNTED]}]},
        {"type": "object", "properties": {"of": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"allOf": [NAMED, COUNTED]}}},
    ],
    ids=["choices beside properties", "a reference", "choices within", "below"],
)
def test_parts_that_hold_together_do_not_close_each_other(schema: dict[str, Any]) -> None:
    llguidance = pytest.importorskip("llguidance", reason="needs the extra structured")
    within = "of" in schema.get("properties", {})
    grammar = json.dumps({"grammars": [{"json_schema": bounded(schema)}]})
    text = '{"name":"tea","count":3}'
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)
    assert not matcher.is_error(), matcher.get_error()
    raw = list((f'{{"of":{text}}}' if within else text).encode())
    assert matcher.try_consume_tokens(raw) == len(raw)
    assert matcher.is_accepting()


@pytest.mark.parametrize(
    "more", [{}, {"description": "the seller"}, {"anyOf": [{"required": ["name"]}, {"required": []}]}]
)
def test_one_part_alone_is_closed(more: dict[str, Any]) -> None:
    """As Pydantic and others write a reference with a description; beside it stands nothing that names properties."""
    for of in ({"allOf": [{"$ref": "#/$defs/A"}, more]}, {"$ref": "#/$defs/A", **more}):
        made = bounded({"type": "object", "properties": {"of": of}, "$defs": {"A": NAMED}})
        assert made["$defs"]["A"]["additionalProperties"] is False


@pytest.mark.parametrize("wrong", [True, 5, {}, "a"])
def test_what_is_no_list_of_parts_is_left_to_the_compiler(wrong: Any) -> None:
    assert bounded({"type": "object", "properties": {"a": {}}, "allOf": wrong})["allOf"] == wrong


def test_a_reference_at_the_top_takes_nothing_away() -> None:
    top = {"type": "object", "properties": {"total": {"type": "number"}}, "$ref": "#/$defs/A", "$defs": {"A": NAMED}}
    assert schema_of(top) == top
    made = bounded(top)
    assert "additionalProperties" not in made
    assert "additionalProperties" not in made["$defs"]["A"]


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


def test_an_excel_file_holds_any_text(tmp_path: Path) -> None:
    """Names of files need not be UTF-8, and a model may write half a character, or what is none: no XML holds them."""
    openpyxl = pytest.importorskip("openpyxl", reason="Excel files need the extra tables")
    row = {
        "file": "bad\udcff.png",
        "page": 1,
        "data": {"a\ud800": "x\ud800\uffff\x07y"},
        "confidence": {},
        "error": None,
    }
    write_rows(tmp_path / "rows.xlsx", lambda: [row])
    head, cells = openpyxl.load_workbook(tmp_path / "rows.xlsx").active.iter_rows(values_only=True)
    found = dict(zip(head, cells, strict=True))
    assert found["file"] == "bad\ufffd.png"
    assert found["data.a\ufffd"] == "x\ufffd\ufffd\ufffdy"


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


def test_a_class_of_pydantic_is_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_schemas.py").write_text(
        "from pydantic import BaseModel\n\nclass Receipt(BaseModel):\n    total: float\n    shop: str\n"
    )
    monkeypatch.chdir(tmp_path)
    found = read_schema("shop_schemas:Receipt")
    assert {name: part["type"] for name, part in found["properties"].items()} == {"total": "number", "shop": "string"}

    class Card(BaseModel):
        name: str

    assert schema_of(Card) == Card.model_json_schema()


def test_parquet_knows_references_and_what_may_be_null(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra tables")

    class Item(BaseModel):
        name: str
        price: float | None

    class Receipt(BaseModel):
        items: list[Item]
        total: float | None = None

    data = {"items": [{"name": "tea", "price": 2.5}], "total": None}
    row = {"file": "bad\udcff.png", "page": 1, "data": data, "confidence": {"total": 0.5}, "error": None}
    write_rows(tmp_path / "rows.parquet", lambda: [row], schema=Receipt.model_json_schema())
    (found,) = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert (found["data"], found["file"]) == (data, "bad?.png")
    loop = {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    write_rows(tmp_path / "loop.parquet", list, schema=loop)


class Node(BaseModel):
    name: str
    left: Node | None = None
    right: Node | None = None
    middle: Node | None = None


def test_a_class_that_holds_itself_is_a_schema_and_a_table() -> None:
    """Each reference to itself is text: three of them, one in the other, would be millions of columns."""
    pytest.importorskip("pyarrow", reason="Parquet needs the extra tables")
    from pocketvlm.documents.arrow import arrow_type, fitted

    assert "$ref" in Node.model_json_schema()
    schema = bounded(schema_of(Node))
    found = arrow_type(schema, schema)
    assert [field.name for field in found] == ["name", "left", "right", "middle"]
    inner = found.field("left").type
    assert {str(inner.field(name).type) for name in ("left", "right", "middle")} == {"string"}
    value = {"name": "a", "left": {"name": "b", "left": {"name": "c"}}}
    assert fitted(value, found)["left"]["left"] == '{"name": "c"}'


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


@given(
    st.lists(st.text("aé漢🙂. ", max_size=4), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_every_field_has_a_confidence_whatever_its_tokens(texts: list[str], size: int) -> None:
    """Tokens may cut characters: alone each part of one is no text."""
    data = {f"f.{number}": text for number, text in enumerate(texts)}
    answer = json.dumps(data, ensure_ascii=False)
    raw = answer.encode()
    pieces = [raw[at : at + size].decode(errors="replace") for at in range(0, len(raw), size)]
    logs = tuple(TokenLogprob(0, piece, -0.5) for piece in pieces)
    found = confidences(Answer(answer, Usage(1, 0, len(logs)), {}, "stop", logprobs=logs))
    assert set(found) == {f"f\\.{number}" for number in range(len(texts))}
    assert set(found.values()) == {0.6065}


def test_numbers_are_kept_as_they_were_written_where_that_says_more() -> None:
    text = '{"total": 11.60, "count": 3, "items": [{"price": 2.5}, {"price": 1e2}], "shop": "7.00"}'
    value = extraction(ROW, "Q", {}).value_of(Answer(text, Usage(1, 0, 1), {}, "stop"))
    assert value["data"]["total"] == 11.6
    assert value["digits"] == {"total": "11.60", "items.0.price": "2.5", "items.1.price": "1e2"}
    assert "digits" not in extraction(ROW, "Q", {}).value_of(Answer('{"total": 5}', Usage(1, 0, 1), {}, "stop"))


def test_a_container_takes_the_place_of_nothing_with_its_confidence() -> None:
    whole = page({"a": {"b": 1}}, **{"a.b": 0.5})
    for nothing in (None, "", 0):
        row = merge_pages([1, 2], [page({"a": nothing}, a=0.9), whole])
        assert (row["data"], row["confidence"]) == ({"a": {"b": 1}}, {"a.b": 0.5})


def test_a_csv_never_holds_all_rows() -> None:
    alive = 0

    def table() -> Iterator[dict[str, Any]]:
        nonlocal alive
        for number in range(100):
            alive += 1
            yield {"n": number}

    lines = _csv_lines(table)
    next(lines), next(lines)
    assert alive == 101  # once for the columns, and one row
