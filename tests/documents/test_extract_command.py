"""`pocketvlm extract`: rows of real files, whatever else is in the folder and whatever stopped an earlier run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run
from PIL import Image

from pocketvlm.api.vlm import VLM
from pocketvlm.documents.extracting import bounded
from pocketvlm.documents.tables import write_rows
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.document_opener import DocumentOpener

TOTALS = ("3.10", "11.60", "7.20", "99.99")
SCHEMA = {
    "type": "object",
    "properties": {"total": {"enum": list(TOTALS)}},
    "required": ["total"],
    "additionalProperties": False,
}
RECEIPT = Path("examples/receipt.png").resolve()


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The receipt as a PNG, as two pages of a PDF and of a TIFF, and a file that is broken."""
    made = tmp_path / "in"
    (made / "more").mkdir(parents=True)
    picture = Image.open(RECEIPT).convert("RGB")
    picture.save(made / "a.png")
    (made / "b.png").write_text("broken")
    picture.save(made / "c.pdf", save_all=True, append_images=[picture])
    picture.save(made / "more/d.tif", save_all=True, append_images=[picture.rotate(180)])
    return made


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_broken_file_among_good_ones_is_a_row_with_its_reason(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    status, text, err = run(capsys, "extract", str(folder), "--schema", schema, "--out", str(out), "--json")
    assert status == 1
    summary = json.loads(text)
    assert {name: summary[name] for name in ("documents", "pages", "rows", "failed", "out")} == {
        "documents": 4,
        "pages": 5,
        "rows": 4,
        "failed": 1,
        "out": str(out),
    }
    rows = rows_of(out)
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png", "c.pdf", "d.tif"]
    assert [row["pages"] for row in rows] == [[1], [], [1, 2], [1, 2]]
    assert rows[0]["data"] == rows[2]["data"] == {"total": "11.60"}
    assert 0 < rows[0]["confidence"]["total"] <= 1
    assert [row["error"] is None for row in rows] == [True, False, True, True]
    assert rows[1]["error"] in err
    failed = rows_of(tmp_path / "rows.jsonl.failed.jsonl")
    assert [(row["file"], row["error"]) for row in failed] == [(rows[1]["file"], rows[1]["error"])]


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_every_table_says_the_same(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"rows{suffix}"
    args = ("extract", str(folder / "a.png"), f"{folder / 'c.pdf'}#2", "--schema", schema, "--per", "page")
    assert run(capsys, *args, "--out", str(out))[0] == 0
    if suffix == ".csv":
        with out.open(newline="") as file:
            found = [(row["file"], int(row["page"]), row["data.total"]) for row in csv.DictReader(file)]
    elif suffix == ".xlsx":
        openpyxl = pytest.importorskip("openpyxl", reason="Excel files need the extra tables")
        head, *lines = openpyxl.load_workbook(out)["rows"].iter_rows(values_only=True)
        places = [head.index(name) for name in ("file", "page", "data.total")]
        found = [tuple(line[place] for place in places) for line in lines]
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra tables")
        found = [(row["file"], row["page"], row["data"]["total"]) for row in parquet.read_table(out).to_pylist()]
    assert found == [(str(folder / "a.png"), 1, "11.60"), (f"{folder / 'c.pdf'}#2", 2, "11.60")]


def test_an_unchanged_page_is_not_read_again(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    as_completed = VLM.as_completed

    def counting(vlm: VLM, requests: Any, **options: Any) -> Any:
        def counted() -> Any:
            for request in requests:
                asked.append(request[0])
                yield request

        return as_completed(vlm, counted(), **options)

    monkeypatch.setattr(VLM, "as_completed", counting)
    out = tmp_path / "rows.jsonl"
    args = ("extract", str(folder), "--schema", schema, "--out", str(out))
    assert run(capsys, *args)[0] == 1
    first, wanted = len(asked), out.read_bytes()
    assert first == len(set(asked)) == 5
    assert run(capsys, *args)[0] == 2  # it is there already
    assert out.read_bytes() == wanted
    assert run(capsys, *args, "--overwrite")[0] == 1
    assert len(asked) == first
    assert out.read_bytes() == wanted
    (folder / "a.png").rename(folder / "z.png")  # the same content under another name
    Image.open(RECEIPT).rotate(90, expand=True).save(folder / "b.png")  # and one that can be read by now
    assert run(capsys, *args, "--overwrite")[0] == 0
    assert len(asked) == first + 1
    assert not (tmp_path / "rows.jsonl.failed.jsonl").read_text()
    assert run(capsys, *args, "--overwrite", "--prompt", "Which total?")[0] == 0
    assert len(asked) == 2 * (first + 1)


def test_a_run_that_was_killed_goes_on(folder: Path, schema: str, tmp_path: Path) -> None:
    picture = Image.open(folder / "a.png")
    for number in range(1, 25):  # pages that differ
        picture.crop((0, number, picture.width, picture.height)).save(folder / f"p{number:02}.png")
    command = [sys.executable, "-m", "pocketvlm", "extract", str(folder), "--schema", schema, "--concurrency", "2"]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    subprocess.run([*command, "--out", whole], check=False, capture_output=True)
    journal = tmp_path / "cut.jsonl.journal"

    def until(done: Callable[[], bool]) -> None:
        process = subprocess.Popen([*command, "--out", cut], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not done() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    for wanted in (3, 9, 15):
        until(lambda wanted=wanted: lines() > wanted)  # type: ignore[misc]
        assert not cut.exists()
        assert lines() > wanted
    with journal.open("ab") as file:
        file.write(b'{"file": "cut o')  # by a loss of power
    done = subprocess.run([*command, "--out", cut], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert cut.read_bytes() == whole.read_bytes()
    keys = [(entry["file"], entry["page"]) for entry in rows_of(journal)[1:]]
    assert len(keys) == len(set(keys)) == 29  # nothing twice


def test_a_dry_run_writes_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    args = ("extract", str(folder), "--schema", schema, "--out", str(tmp_path / "rows.csv"), "--dry-run", "--json")
    status, text, err = run(capsys, *args)
    found = json.loads(text)
    assert (status, found["documents"], found["failed"], found["pages"], found["measured"]) == (0, 4, 1, 5, 5)
    assert found["prompt_tokens"] > 5 * 64
    assert found["seconds"] > 0
    assert "b.png" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--schema": "total"}, "no field of a schema"),
        ({"--schema": "total: money"}, "no field of a schema"),
        ({"--schema": "missing.json"}, "cannot be read"),
        ({"--schema": "json:nothing"}, "no Pydantic class"),
        ({"--schema": "{own}"}, "no schema of an object"),
        ({"--out": "rows.doc"}, "no table that can be written"),
        ({"--out": "missing/rows.csv"}, "no directory"),
        ({"--out": "in/a.png.jsonl", "--arrays": "table"}, "has no use for .jsonl"),
        ({"--concurrency": "0"}, "concurrency"),
        ({"--schema": ", ".join(f"a{n}: money" for n in range(99))}, "no field of a schema"),
        ({"--prompt": " "}, "--prompt is empty"),
        ({"--prompts": "missing.toml"}, "missing.toml cannot be read"),
        ({"files": "in/b.png"}, "nothing can be read"),
        ({"files": "none*.png"}, "no file"),
        ({"files": "in/c.pdf#9"}, "no page 9"),
        ({"files": "empty"}, "holds no file"),
    ],
)
def test_bad_use_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    schema: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "own.json").write_text('{"type": "array"}')
    before = sorted(tmp_path.rglob("*"))
    given = {"files": str(folder), "--schema": schema, "--out": "rows.csv", **change}
    words = [given.pop("files"), *(word for pair in given.items() for word in pair)]
    status, out, err = run(capsys, "extract", *(word.replace("{own}", "own.json") for word in words))
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_schema_that_answers_cannot_be_kept_to_is_said_once(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}))
    status, _, err = run(capsys, "extract", str(folder), "--schema", str(bad), "--out", str(tmp_path / "rows.csv"))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "rows.csv").exists()
    dry = run(capsys, "extract", str(folder), "--schema", str(bad), "--out", str(tmp_path / "rows.csv"), "--dry-run")
    assert dry == (2, "", err)


def test_a_dry_run_leaves_a_journal_alone(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path
) -> None:
    args = ("extract", str(folder), "--schema", schema, "--out", str(tmp_path / "rows.csv"))
    assert run(capsys, *args)[0] == 1
    journal = tmp_path / "rows.csv.journal"
    with journal.open("ab") as file:
        file.write(b'{"file": "cut o')
    before = journal.read_bytes()
    status, text, _ = run(capsys, *args, "--dry-run", "--json")
    assert (status, json.loads(text)["pages"]) == (0, 0)
    assert journal.read_bytes() == before


def test_what_the_run_writes_is_not_read(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "rows.csv"
    args = ("extract", str(folder), "--schema", schema, "--out", str(out))
    assert run(capsys, *args)[0] == 1
    before = out.read_bytes()
    monkeypatch.chdir(folder)
    relative = ("extract", str(folder), "--schema", schema, "--out", "rows.csv")
    assert run(capsys, *relative, "--overwrite")[0] == 1
    assert out.read_bytes() == before
    out.unlink()  # as after a kill
    assert run(capsys, *args)[0] == 1
    assert out.read_bytes() == before


def test_until_the_rows_are_there_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a stop while the page for the review is made, or between two tables."""
    out = tmp_path / "rows.csv"
    args = ("extract", str(folder), "--schema", schema, "--out", str(out), "--review", "1", "--arrays", "table")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pocketvlm.cli.extract.review_page", stop)
        assert run(capsys, *args)[0] == 130
    assert not out.exists()
    with monkeypatch.context() as patch:
        writes = iter([write_rows, stop])
        patch.setattr("pocketvlm.cli.extract.write_rows", lambda *a, **k: next(writes)(*a, **k))
        assert run(capsys, *args)[0] == 130
    out.with_name("rows.items.csv").write_text("half of the tables")  # which that run was about to write
    assert run(capsys, *args)[0] == 1
    assert out.exists()
    assert out.with_name("rows.csv.review.html").exists()
    status, _, err = run(capsys, *args)
    assert (status, "already there" in err) == (2, True)


def test_a_page_that_has_gone_is_left_out_of_the_review(
    capsys: pytest.CaptureFixture[str], folder: Path, schema: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "rows.csv"
    args = ("extract", str(folder), "--schema", schema, "--out", str(out), "--review", "1", "--overwrite")
    assert run(capsys, *args)[0] == 1
    whole = out.with_name("rows.csv.review.html").read_text().count("data:image/jpeg")
    pictures, opener = [], DocumentOpener.picture

    def picture(self: DocumentOpener, source: Any, side: int, quality: int) -> str:
        pictures.append(source)
        if str(source).endswith("a.png"):
            raise MediaError("it has gone")
        return opener(self, source, side, quality)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DocumentOpener, "picture", picture)
        assert run(capsys, *args)[0] == 1
    assert len(pictures) == whole
    assert out.with_name("rows.csv.review.html").read_text().count("data:image/jpeg") == whole - 1
    assert "a.png, page 1: it has gone" in caplog.text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": 5}}},
        {"type": "object", "properties": {"a": {"type": True}}},
        {"type": "object", "properties": {"a": {"enum": [Decimal(1)]}}},
        {"type": "object", "properties": {"a": {"enum": [{1}]}}},
    ],
    ids=str,
)
def test_what_is_no_schema_is_said_in_a_line(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="schema"):
        bounded(schema)
