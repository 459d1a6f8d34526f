"""`extract --review`: a person corrects what the model was not sure of, by keyboard, and the model learns it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run
from PIL import Image

from pocketvlm.documents.field_kinds import Kind, NewItem, array_items, field_kinds
from pocketvlm.documents.inputs import Document
from pocketvlm.documents.review import review_page

SCHEMA = {
    "type": "object",
    "properties": {"total": {"enum": ["3.10", "11.60", "7.20", "99.99"]}, "paid": {"type": "boolean"}},
    "required": ["total", "paid"],
    "additionalProperties": False,
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOW = "needs a Chromium to drive: `apt-get install chromium`, or Google Chrome"


def corrected(page: Path, out: Path, keys: list[str]) -> None:
    """Open the file, press keys (text is typed, buttons are pressed by Enter), and export to `out`.

    The file asks nobody for anything.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason=HOW)
    if (found := next(filter(None, map(shutil.which, BROWSERS)), None)) is None:
        pytest.skip(HOW)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page()
        asked, faults = list[str](), list[str]()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(page.as_uri())
        for key in keys:
            if key.startswith("text:"):
                tab.keyboard.press("ControlOrMeta+a")
                tab.keyboard.type(key.removeprefix("text:"))
            elif key.startswith("button:"):
                tab.get_by_role("button", name=key.removeprefix("button:")).focus()
                tab.keyboard.press("Enter")
            else:
                tab.keyboard.press(key)
        with tab.expect_download() as download:
            tab.keyboard.press("Control+s")
        download.value.save_as(out)
        browser.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_correction_is_learnt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, schema = tmp_path / "in", tmp_path / "schema.json"
    folder.mkdir()
    receipt = Image.open("examples/receipt.png")
    receipt.save(folder / "a.tif", save_all=True, append_images=[receipt.rotate(180)])
    schema.write_text(json.dumps(SCHEMA))
    args = ("extract", f"{folder / 'a.tif'}#1", "--schema", str(schema), "--review", "1")
    assert run(capsys, *args, "--out", str(tmp_path / "rows.jsonl"))[0] == 0
    first = json.loads((tmp_path / "rows.jsonl").read_text())["data"]
    assert first["total"] != "7.20"
    lines = tmp_path / "corrections.jsonl"
    other = "true" if first["paid"] is False else "false"
    keys = ["text:7.20", "Enter", *(["ArrowDown"] if other == "false" else ["ArrowUp"]), "Enter"]
    corrected(tmp_path / "rows.jsonl.review.html", lines, keys)
    (line,) = map(json.loads, lines.read_text().splitlines())
    wanted = {"total": "7.20", "paid": other == "true"}
    assert json.loads(line["messages"][1]["content"]) == wanted
    assert line["images"] == [f"{folder.resolve() / 'a.tif'}#1"]
    tuned = tmp_path / "tuned"
    steps = ("--steps", "15", "--learning-rate", "5e-3", "--batch-size", "1")
    assert run(capsys, "tune", str(lines), "--out", str(tuned), *steps)[0] == 0
    assert run(capsys, *args, "--out", str(tmp_path / "again.jsonl"), "--adapter", str(tuned))[0] == 0
    assert json.loads((tmp_path / "again.jsonl").read_text())["data"] == wanted


def test_nothing_below_the_threshold_is_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    args = ("extract", "examples/word.png", "--schema", "word: boolean", "--out", str(out), "--overwrite")
    assert run(capsys, *args, "--review", "1")[0] == 0
    assert (tmp_path / "rows.csv.review.html").exists()
    status, _, err = run(capsys, *args, "--review", "0")
    assert (status, err) == (0, "no page has a field below 0.0: there is nothing to review\n")
    assert not (tmp_path / "rows.csv.review.html").exists()
    for bad in ("-0.1", "1.1", "nan"):
        assert run(capsys, *args, f"--review={bad}")[0] == 2


def test_a_document_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    picture = tmp_path / "{script}.png"
    Image.new("RGB", (20, 20)).save(picture)
    hostile = "</script><script>alert(1)</script>{style}{review}"
    value: dict[str, Any] = {"data": {"a": hostile}, "confidence": {"a": 0.1}, "error": None}
    document = Document(name=str(picture), path=picture, pages=(1,), digest="1")
    made, _ = review_page([(document, 1, value)], f"Q {hostile}", 0.8, SCHEMA)
    assert made.count("<script") == 2
    assert made.count("</style>") == 1
    data = made.split('id="review">')[1].split("</script>")[0]
    assert json.loads(data)["pages"][0]["data"] == {"a": hostile}


def test_numbers_keep_their_digits_and_null_its_type(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    data = {"total": 11.6, "count": 3, "tax": None, "paid": None, "note": None, "items": [{"price": 2.5}]}
    kinds = {"total": "number", "count": "integer", "tax": ["number", "null"], "paid": ["boolean", "null"]}
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in {**kinds, "note": ["null", "string"]}.items()},
    }
    digits = {"total": "11.60", "items.0.price": "2.50"}
    doubtful = dict.fromkeys(("total", "count", "tax", "paid", "note"), 0.1)
    value: dict[str, Any] = {"data": data, "confidence": doubtful, "error": None, "digits": digits}
    document = Document(name=str(picture), path=picture, pages=(1,), digest="1")
    page, out = tmp_path / "review.html", tmp_path / "out.jsonl"
    page.write_text(review_page([(document, 1, value)], "Q", 0.8, schema)[0])
    # "0x10" is no number of JSON, and 1.5 no whole one: neither is let past.
    keys = ["Enter", "text:1.5", "Enter", "text:4", "Enter", "text:0x10", "Enter", "text:2.50", "Enter", "ArrowDown"]
    corrected(page, out, [*keys, "Enter", "Enter"])
    (line,) = map(json.loads, out.read_text().splitlines())
    wanted = '{"total": 11.60, "count": 4, "tax": 2.50, "paid": true, "note": null, "items": [{"price": 2.50}]}'
    assert line["messages"][1]["content"] == wanted


def test_text_of_several_lines_keeps_them(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    data = {"address": "Main St 1\nBerlin", "shop": "A"}
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in data}}
    value: dict[str, Any] = {"data": data, "confidence": dict.fromkeys(data, 0.1), "error": None}
    document = Document(name=str(picture), path=picture, pages=(1,), digest="1")
    page, out = tmp_path / "review.html", tmp_path / "out.jsonl"
    page.write_text(review_page([(document, 1, value)], "Q", 0.8, schema)[0])
    # Behind the last line a new one, with Enter alone the next field.
    corrected(page, out, ["ControlOrMeta+End", "Shift+Enter", "X", "Enter", "text:B", "Enter"])
    (line,) = map(json.loads, out.read_text().splitlines())
    assert json.loads(line["messages"][1]["content"]) == {"address": "Main St 1\nBerlin\nX", "shop": "B"}


def test_what_a_field_is_is_found_in_any_schema() -> None:
    price = {"anyOf": [{"type": "number"}, {"type": "null"}]}
    item = {"type": "object", "properties": {"price": price, "name": {"type": "string"}}}
    schema: dict[str, Any] = {
        "$defs": {"Item": item},
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
            "a.b": {"type": ["integer", "null"]},
            "self": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "null"}]},
        },
    }
    data = {
        "items": [{"price": None, "name": "tea"}, {"price": 2.5, "name": None}],
        "a.b": 3,
        "self": {"a.b": None},
        "x": None,
    }
    assert {name: tuple(kind) for name, kind in field_kinds(data, schema)} == {
        "items.0.price": ("number", True),
        "items.0.name": ("string", False),
        "items.1.price": ("number", True),
        "items.1.name": ("string", True),
        "a\\.b": ("integer", True),
        "self.a\\.b": ("integer", True),
        "x": ("string", True),
    }


ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "price": {"type": "number"}, "note": {"type": ["string", "null"]}},
    "required": ["name", "price", "note"],
}


def test_items_are_added_and_taken_away(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    schema = {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": ITEM},
            "tags": {"type": "array", "items": {"type": "string"}},
            "from": {"type": ["object", "null"], "properties": {"a": {"type": "string"}}},
        },
    }
    items = [{"name": name, "price": 2.5, "note": None} for name in ("tea", "wrong", "milk")]
    data = {"items": items, "tags": [], "from": None}
    sure = {"items.2.name": 0.1, "items.1.name": 0.2, "items.0.name": 0.9}
    digits = {f"items.{number}.price": f"2.5{number}" for number in range(3)}
    value: dict[str, Any] = {"data": data, "confidence": sure, "error": None, "digits": digits}
    document = Document(name=str(picture), path=picture, pages=(1,), digest="1")
    page, out = tmp_path / "review.html", tmp_path / "out.jsonl"
    page.write_text(review_page([(document, 1, value)], "Q", 0.8, schema)[0])
    # Enter on a button presses it; the page is not right before the price is filled in, where the cursor goes.
    keys = ["button:Remove items.1", "button:Add to items", "text:sugar", "button:This page is right", "text:0.90"]
    keys += ["button:Add to tags", "text:new", "button:Add to tags", "text:shop", "button:This page is right"]
    corrected(page, out, keys)
    (line,) = map(json.loads, out.read_text().splitlines())
    found = json.loads(line["messages"][1]["content"])
    milk = {**items[2], "price": 2.52}  # as it was written
    assert found["items"] == [items[0], milk, {"name": "sugar", "price": 0.9, "note": None}]
    assert (found["tags"], found["from"]) == (["new", "shop"], None)


def test_a_new_item_is_what_the_schema_says() -> None:
    kind = {"enum": ["food", "other"]}
    deep = {"type": "object", "properties": {"a.b": kind, "self": {"$ref": "#"}, "count": {"type": "integer"}}}
    items = {"anyOf": [{**deep, "required": ["a.b", "count"]}, {"type": "null"}]}
    found = array_items({"deep": []}, {"type": "object", "properties": {"deep": {"type": "array", "items": items}}})
    kinds = {"a\\.b": Kind("string", False), "count": Kind("integer", False)}
    assert found == {"deep": NewItem({"a.b": "food", "count": None}, kinds, {})}
    lines = {"type": "array", "items": {"type": "string"}}
    order = {"type": "object", "properties": {"lines": lines}}
    orders = array_items({"orders": []}, {"properties": {"orders": {"type": "array", "items": order}}})
    assert orders == {"orders": NewItem({"lines": []}, {}, {"lines": NewItem("", {"": Kind("string", False)}, {})})}
    own: dict[str, Any] = {"type": "array", "items": {"$ref": "#"}}
    assert array_items([], own)[""].item == []
    assert array_items({"x": [1]}, {"type": "object"}) == {}
