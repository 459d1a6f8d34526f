"""`--list`: the documents that a file names, in lines or in a column of a table."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import fsspec
import pyarrow
import pytest
from helpers.command import run
from PIL import Image
from pyarrow import parquet

from pocketvlm.documents.inputs import Found, find_files
from pocketvlm.documents.lists import listed
from pocketvlm.errors import ConfigError

WORD, NUMBER = Path("examples/word.png").resolve(), Path("examples/number.png").resolve()
NAMES = ["sub/a.tif#2", "missing.png", "b.png", "sub", "b.png"]
ASK = ("--prompt", "What is the word?")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the documents."""
    (tmp_path / "sub").mkdir()
    Image.open(WORD).save(tmp_path / "sub/a.tif", save_all=True, append_images=[Image.open(NUMBER)])
    Image.open(WORD).save(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(form: str, names: list[str]) -> str:
    """A list of that form, in the working directory."""
    path = Path(f"list.{form}")
    if form == "txt":
        path.write_text("\ufeff" + "\r\n".join([*names, "", "  "]))
    elif form == "jsonl":
        lines = [json.dumps({"file": name, "id": 1} if i % 2 else name) for i, name in enumerate(names)]
        path.write_text("\n".join([*lines, "", '{"file": null}']))
    elif form == "csv":
        path.write_text("\ufeffid,file\n" + "".join(f'1,"{name}"\n' for name in names))
    else:
        parquet.write_table(pyarrow.table({"id": range(len(names)), "file": names}), path)
    return str(path)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "parquet"])
def test_a_list_names_files_and_their_places(form: str) -> None:
    places = [Path("sub/a.tif"), Path("missing.png"), Path("b.png"), Path("sub"), Path("b.png")]
    assert listed(write(form, NAMES)) == [Found(name, place) for name, place in zip(NAMES, places, strict=True)]


def test_places_are_never_above_the_folder(here: Path) -> None:
    names = [str(here / "b.png"), "../x/b.png", "data:x.png", "memory://bucket/scans/c.pdf#3"]
    found = listed(write("txt", names))
    assert [one.place for one in found] == [Path(name) for name in ("b.png", "b.png", "data:x.png", "c.pdf")]
    assert found[2].name == "./data:x.png"  # a name, not an address
    assert (found[3].url, found[3].choice) == ("memory://bucket/scans/c.pdf", "3")


@pytest.mark.usefixtures("here")
def test_each_file_is_meant_once_whoever_names_it() -> None:
    found = find_files(["b.png"], listed=listed(write("txt", NAMES)))
    assert [one.name for one in found] == ["b.png", "sub/a.tif#2", "missing.png", "sub"]
    with pytest.raises(ConfigError, match="no file was given"):
        find_files([])


def test_what_cannot_be_read_of_a_list_does_not_stop_the_rest(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    arguments = ("read", "--list", write("csv", NAMES), "--out", "out", "--json", *ASK)
    status, out, err = run(capsys, *arguments)
    summary = json.loads(out)
    assert (status, summary["documents"], summary["pages"], summary["failed"]) == (1, 4, 2, 2)
    rows = [json.loads(line) for line in Path("out/index.jsonl").read_text().splitlines()]
    assert [(row["file"], row["page"], row["out"]) for row in rows] == [
        ("sub/a.tif#2", 2, "sub/a.md"),
        ("missing.png", None, None),
        ("b.png", 1, "b.md"),
        ("sub", None, None),
    ]
    assert "No such file" in rows[1]["error"]
    assert "missing.png" in err
    assert (here / "out/b.md").read_text() == "castle\n"


def test_names_that_are_no_file_are_failures_of_their_own(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """A folder, the root, a pipe that nobody writes to, a name that no file system has, and one in another encoding."""
    os.mkfifo("pipe")
    (here / "caf\udce9.png").write_bytes((here / "b.png").read_bytes())
    Path("list.txt").write_bytes(b"b.png\n.\n/\npipe\ncaf\xe9.png\nmemory://nowhere/.\n")
    Path("list.jsonl").write_text('{"file": "\\ud800.png"}\n"a\\u0000b"\n"a\u2028b.png"\n"b.png "\n')
    lists = ("--list", "list.txt", "--list", "list.jsonl")
    status, out, err = run(capsys, "read", *lists, "--out", "out", "--json", *ASK)
    assert (status, json.loads(out)["documents"], json.loads(out)["failed"]) == (1, 10, 8)
    rows = [json.loads(line) for line in Path("out/index.jsonl").read_text().rstrip("\n").split("\n")]
    reasons = [row["error"] for row in rows]
    assert [reason is None for reason in reasons] == [True, *[False] * 3, True, *[False] * 5]
    assert all("no ordinary file" in reasons[i] for i in (1, 2, 3))
    assert all("it is no path" in reasons[i] for i in (6, 7))
    assert "Traceback" not in err


@pytest.mark.usefixtures("here")
def test_names_may_stand_between_zero_bytes() -> None:
    Path("list.txt").write_bytes(b"b.png\0new\nline.png\0")
    assert [one.name for one in listed("list.txt")] == ["b.png", "new\nline.png"]


def test_addresses_may_hold_a_number_sign() -> None:
    storage = fsspec.filesystem("memory")
    storage.pipe_file("/lists/a #3.pdf", b"x")
    storage.pipe_file("/lists/todo.txt", b"memory://lists/a #3.pdf\nmemory://lists/b.pdf#3\n")
    assert [(one.url, one.choice) for one in listed("memory://lists/todo.txt")] == [
        ("memory://lists/a #3.pdf", None),
        ("memory://lists/b.pdf", "3"),
    ]
    with pytest.raises(ConfigError, match="there is no file"):
        listed("memory://lists/missing.txt")


@pytest.mark.usefixtures("here")
def test_a_list_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("todo.csv").write_text("file\nb.png\n")
    Path("out").mkdir()
    Path("out/failed.jsonl").write_text('{"file": "b.png"}\n')
    for arguments in (
        ("extract", "--list", "todo.csv", "--schema", "word: string", "--out", "todo.csv", "--overwrite"),
        ("read", "--list", "out/failed.jsonl", "--out", "out", "--overwrite"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
    assert Path("todo.csv").read_text() == "file\nb.png\n"
    assert Path("out/failed.jsonl").read_text() == '{"file": "b.png"}\n'
    Path("out/todo.txt").write_text("b.png\n")  # named as texts are, and no text of the run
    options = ("--format", "markdown", "--dry-run", "--max-tokens", "4")
    assert run(capsys, "read", "--list", "out/todo.txt", "--out", "out", *options)[0] == 0


@pytest.mark.usefixtures("here")
def test_names_come_through_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.png\n")))
    schema = ("--schema", "word: string", "--out", "rows.csv", "--json")
    status, out, _ = run(capsys, "extract", "--list", "-", *schema)
    assert (status, json.loads(out)["documents"]) == (0, 1)


@pytest.mark.usefixtures("here")
def test_another_column_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.csv").write_text("scan\nb.png\n")
    assert [one.name for one in listed("list.csv", "scan")] == ["b.png"]
    assert run(capsys, "read", "--list", "list.csv", "--list-column", "scan", "--out", "out", *ASK)[0] == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.txt", b"\n \n", "names no file"),
        ("list.txt", b"\xff\xfea\0", "not in UTF-8"),
        ("list.csv", b"\xff\xfe", "not in UTF-8"),
        ("list.csv", b"", "no column 'file'"),
        ("list.csv", b"id,path\n1,b.png\n", "no column 'file': 'id', 'path'"),
        ("list.jsonl", b'"b.png"\n{"path": "b.png"}\n', "line 2, has no column 'file'"),
        ("list.jsonl", b'"b.png"\n{"file"\n', "line 2 of the list list.jsonl is not valid JSON"),
        ("list.jsonl", b'{"file": 3}\n', "row 1 of the list list.jsonl holds 3"),
        ("list.parquet", b"PAR1", "no table of Parquet"),
        ("list.csv", b'file\nb.png\n"x' + b"y" * 200_000 + b'"\n', "line 3 of the list list.csv: field larger"),
    ],
)
def test_a_list_that_is_none_is_one_line(
    capsys: pytest.CaptureFixture[str], name: str, content: bytes, reason: str
) -> None:
    Path(name).write_bytes(content)
    status, out, err = run(capsys, "read", "--list", name, "--out", "out")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert reason in err
    assert not Path("out").exists()


@pytest.mark.usefixtures("here")
def test_options_that_say_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("names.txt").write_text("b.png\n")
    Path("list.csv").write_text("file\nb.png\n")
    Path("strings.jsonl").write_text('"b.png"\n')
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["b.png"])] * 2, ["file", "file"]), "twice.parquet")
    for arguments, reason in (
        (("b.png", "--list-column", "scan"), "goes with --list"),
        (("--list", "names.txt", "--list-column", "scan"), "has no columns"),
        (("--list", "strings.jsonl", "--list-column", "scan"), "line 1 of the list strings.jsonl has no columns"),
        (("--list", "list.csv", "--list-column", ""), "no column ''"),
        (("--list", "twice.parquet"), "2 times"),
        (("--list", "sub"), "Is a directory"),
        (("--list", "missing.txt"), "No such file"),
        ((), "no file was given"),
    ):
        status, out, err = run(capsys, "read", *arguments, "--out", "out")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert reason in err


@pytest.mark.usefixtures("here")
def test_an_address_of_the_web_in_a_list_is_a_failure_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("names.txt").write_text("b.png\nhttps://example.org/a.pdf\n")
    status, _, err = run(capsys, "read", "--list", "names.txt", "--out", "out", *ASK)
    assert (status, err) == (1, "https://example.org/a.pdf cannot be read: it is an address of the web\n")
