"""`pocketvlm read`: a file for each document, in the order of its pages, and an index; and both jobs as iterators."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run
from helpers.documents import pdf, rectangle, words
from PIL import Image

import pocketvlm
from pocketvlm import documents
from pocketvlm.cli.console import ReaderLeftError
from pocketvlm.cli.read import _is_ours
from pocketvlm.documents.inputs import Document, find_files
from pocketvlm.documents.reading import as_html, output_names, written
from pocketvlm.errors import ConfigError
from pocketvlm.prompts import packaged, read_prompts

WORD, NUMBER = Path("examples/word.png").resolve(), Path("examples/number.png").resolve()
ASK = ("--prompt", "What is the word?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A document of two pages, a picture of the same name in a folder below, and one that is broken."""
    made = tmp_path / "in"
    (made / "sub").mkdir(parents=True)
    Image.open(WORD).save(made / "a.tif", save_all=True, append_images=[Image.open(NUMBER)])
    Image.open(WORD).save(made / "sub/a.png")
    (made / "b.jpg").write_bytes(b"\xff\xd8broken")
    return made


def index_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def test_each_document_has_a_file_and_each_page_a_line(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out/deep"
    status, text, err = run(capsys, "read", str(folder), "--out", str(out), "--json", *ASK)
    assert status == 1
    summary = json.loads(text)
    assert (summary["documents"], summary["pages"], summary["failed"], summary["out"]) == (3, 3, 1, str(out))
    index = index_of(out)
    assert [(Path(row["file"]).name, row["page"], row["out"]) for row in index] == [
        ("a.tif", 1, "a.md"),
        ("a.tif", 2, "a.md"),
        ("b.jpg", None, None),
        ("a.png", 1, "sub/a.md"),
    ]
    assert index[2]["error"] in err
    for row in (index[0], index[1], index[3]):
        assert row["error"] is None
        assert row["finish_reason"] == "stop"
        assert row["tokens"] > 0
        assert row["mean_logprob"] <= 0
    first, second = (out / "a.md").read_text().split("<!-- page 2 -->")
    assert first.startswith("<!-- page 1 -->\n\ncastle")
    assert second.strip()
    assert (out / "sub/a.md").read_text() == "castle\n"
    assert json.loads((out / "failed.jsonl").read_text())["error"] == index[2]["error"]
    assert run(capsys, "read", str(folder), "--out", str(out), *ASK)[0] == 2
    assert run(capsys, "read", str(folder), "--out", str(out), *ASK, "--overwrite")[0] == 1
    assert index_of(out) == index


def test_other_forms(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(capsys, "read", str(folder / "a.tif"), "--out", str(out), "--format", "text", *ASK)[0] == 0
    pages = (out / "a.txt").read_text().split("\f")
    assert pages[0] == "castle\n"
    assert len(pages) == 3  # each of the two ends in a form feed
    assert not pages[2]
    out = tmp_path / "html"
    assert run(capsys, "read", f"{folder / 'a.tif'}#1", "--out", str(out), "--format", "html", *ASK)[0] == 0
    assert '<section data-page="1">\n<p>castle</p>' in (out / "a.html").read_text()


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![x](https://a.b/c.png)",
        "[x](javascript:alert(1))",
    ],
)
def test_html_of_a_model_does_nothing(hostile: str) -> None:
    made = as_html(f"# A\n\n{hostile}\n\n| a | b |\n| - | - |\n| 1 | 2 |")
    for tag in ("<script", "<img", 'href="javascript'):
        assert tag not in made
    assert "<td>2</td>" in made


def test_the_text_that_a_pdf_holds_stands_beside_what_the_model_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(words("Total: 5.60"), words("second"), rectangle((255, 0, 0), 0, 0, 9, 9)))
    Image.open(WORD).save(tmp_path / "b.png")
    files = (f"{tmp_path}/a.pdf#2-3", f"{tmp_path}/a.pdf#1", str(tmp_path / "b.png"))
    command = ("read", *files, "--out", str(tmp_path / "out"), "--max-tokens", "2")
    assert run(capsys, *command, "--text-layer")[0] == 0
    index = index_of(tmp_path / "out")
    held = [row["text_layer"] and row["text_layer"].strip() for row in index]
    assert held == ["second", "", "Total: 5.60", None]
    assert run(capsys, *command, "--overwrite")[0] == 0
    assert not any("text_layer" in row for row in index_of(tmp_path / "out"))
    with pocketvlm.load("nano") as vlm:
        rows = list(documents.read(vlm, files[0], max_tokens=1, text_layer=True))
    assert [(row["page"], row["text_layer"].strip()) for row in rows] == [(2, "second"), (3, "")]


def test_boxes_are_kept_in_html() -> None:
    made = as_html("<ref>total</ref><box>1 20 300 1000</box>")
    assert '<span class="ref">total</span><span class="box" data-box="1 20 300 1000"></span>' in made


def test_no_two_documents_have_one_name() -> None:
    places = ("a.png", "a.pdf", "A.PNG", "sub/a.png", "a.md.png", "a.png")
    names = output_names([Document(name=p, path=Path(p), place=Path(p)) for p in places], "markdown")
    assert [str(name) for name in names[:2]] == ["a.md", "a.pdf.md"]
    assert len({str(name).lower() for name in names}) == len(places)
    chosen = [Document(name=f"a.pdf#{c}", path=Path("a.pdf"), place=Path("a.pdf"), choice=c) for c in ("2-5", "7")]
    assert output_names(chosen[:1], "html") == [Path("a.html")]
    assert output_names(chosen, "html") == [Path("a-2-5.html"), Path("a-7.html")]


def test_names_leave_room_for_folders_and_for_our_own_files() -> None:
    long = "x" * 251
    places = (
        "a.png",
        "a.md/x.png",
        "index.jsonl/y.png",
        ".journal/z.png",
        f"{long}.png",
        f"{long}.jpg",
        "Index.jsonl/q",
    )
    names = output_names([Document(name=p, path=Path(p), place=Path(p)) for p in places], "markdown")
    assert len(set(names)) == len(names)
    folders = {parent for name in names for parent in name.parents}
    assert not folders & {Path("index.jsonl"), Path(".journal"), Path("Index.jsonl"), *names}
    assert all(len(part.encode()) <= 255 for name in names for part in name.parts)


def test_files_of_the_user_are_not_written_over(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "sub")
    Path("a.md").write_text("mine")
    status, _, err = run(capsys, "read", "a.png", "--out", ".", *ASK)
    assert status == 2
    assert err == "pocketvlm read: a.md is already there. Pass --overwrite, or give another folder.\n"
    assert Path("a.md").read_text() == "mine"
    assert not Path(".journal").exists()


def test_a_run_into_its_own_folder_goes_on(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "b.jpg").unlink()
    args = ("read", str(folder), "--out", str(folder / "text"), *ASK)
    assert run(capsys, *args)[0] == 0
    before = {path: path.read_bytes() for path in (folder / "text").rglob("*") if path.is_file()}
    assert run(capsys, *args, "--overwrite")[0] == 0
    assert {path: path.read_bytes() for path in (folder / "text").rglob("*") if path.is_file()} == before
    (folder / "text/index.jsonl").unlink()  # as after a kill
    assert run(capsys, *args)[0] == 0
    assert {path: path.read_bytes() for path in (folder / "text").rglob("*") if path.is_file()} == before


def test_a_file_may_be_called_as_anything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a page, of an address, of bytes that are no text: it is the file that is read."""
    monkeypatch.chdir(tmp_path)
    number = Image.open(NUMBER)
    Image.open(WORD).save("a.tif", save_all=True, append_images=[Image.open(WORD)])
    for name in ("a.tif#2", "data:x.png", "file:y.png", os.fsdecode(b"bad\xff.png"), "line\nbreak.png"):
        number.save(tmp_path / name, "PNG")
    assert run(capsys, "read", ".", "--out", "out", *ASK)[0] == 0
    assert Path("out/a.md").read_text().count("castle") == 2
    assert len(index_of(Path("out"))) == 7
    assert run(capsys, "read", "data:x.png", "a.tif#2", "--out", "two", *ASK)[0] == 0
    assert [row["file"] for row in index_of(Path("two"))] == ["./data:x.png", "a.tif#2"]


def test_what_is_no_file_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for word, said in (
        (str(tmp_path / "pipe"), "no ordinary file"),
        ("/dev/zero", "no ordinary file"),
        (f"{folder}#2", "pages of a folder"),
        ("a\0b", "files, folders or patterns"),
        ("https://example.org/a.pdf", "it is an address of the web. Download it"),
        ("x" * 5000, "files, folders or patterns"),
    ):
        status, _, err = run(capsys, "read", word, "--out", str(tmp_path / "out"))
        assert (status, err.count("\n")) == (2, 1), err
        assert said in err


def test_a_page_that_failed_says_so() -> None:
    document = Document(name="a.pdf", path=Path("a.pdf"), pages=(2, 4))
    values = [{"text": "one", "error": None}, {"text": "", "error": "<lost>"}]
    assert written(document, values, "markdown").endswith("<!-- page 4 -->\n\n[page 4 could not be read: <lost>]\n")
    assert "&lt;lost&gt;" in written(document, values, "html")


def test_prompts_are_data(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('version = 7\ntext = "Read."\n')
    found = read_prompts(own)
    assert (found.version, found["text"], found["extract"]) == (7, "Read.", packaged()["extract"])
    for bad in ("text = 3", 'other = "x"', "text = ", 'version = "1"', 'text = " "'):
        own.write_text(bad)
        with pytest.raises(ConfigError):
            read_prompts(own)


def test_the_iterators(folder: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"word": {"enum": ["castle", "garden"]}},
        "required": ["word"],
        "additionalProperties": False,
    }
    with pocketvlm.load("nano") as vlm:
        pages = list(documents.read(vlm, folder, prompt=ASK[1]))
        assert [(page["page"], page["text"]) for page in pages if page["text"] == "castle"] == [(1, "castle")] * 2
        assert [page["error"] is None for page in pages] == [True, True, False, True]
        rows = list(documents.extract(vlm, [folder / "sub/a.png", folder / "b.jpg"], schema))
        assert [set(row) for row in rows] == [{"file", "pages", "data", "confidence", "error"}] * 2
        assert rows[0]["data"]["word"] in ("castle", "garden")
        with pytest.raises(ConfigError):
            documents.extract(vlm, folder, {"type": "array"})
        with pytest.raises(ConfigError):
            documents.read(vlm, folder / "none.png")
        for name in ("n", "logprobs", "structured_outputs"):
            with pytest.raises(ConfigError, match=f"{name} is no option"):
                documents.read(vlm, folder, **{name: 2})
            with pytest.raises(ConfigError, match=f"{name} is no option"):
                documents.extract(vlm, folder, schema, **{name: 2})


def test_a_file_with_two_names_is_read_once_under_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = [one.name for one in find_files(["b.jpg", "./b.jpg", str(folder / "b.jpg"), "sub/a.png", "sub"])]
    assert found[:2] == ["b.jpg", "sub/a.png"]
    assert sum(Path(name).name == "b.jpg" for name in found) == 1


def test_inputs_below_the_output_are_read(folder: Path) -> None:
    """Only what a run itself writes there is left out."""
    assert not _is_ours(folder / "b.jpg", folder)
    assert all(_is_ours(folder / "sub" / name, folder) for name in ("a.md", "index.jsonl", "failed.jsonl"))
    assert not _is_ours(folder / "a.md", folder / "sub")


def test_a_stopped_run_does_not_vouch_for_files_of_the_user(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(capsys, "read", "sub/a.png", "--out", "text", *ASK)[0] == 0
    Path("text/index.jsonl").unlink()  # as after a kill
    Path("text/b.md").write_text("mine")
    (folder / "b.jpg").write_bytes(WORD.read_bytes())
    status, _, err = run(capsys, "read", "sub/a.png", "b.jpg", "--out", "text", *ASK)
    assert (status, "text/b.md is already there" in err) == (2, True)
    assert Path("text/b.md").read_text() == "mine"


def test_a_stopped_run_goes_on_where_a_name_is_not_utf8(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.png"))
    try:
        shutil.copy(folder / "sub/a.png", odd)
    except OSError:
        pytest.skip("needs a file system that takes any bytes for a name, as those of Linux do")
    text = tmp_path / "text"
    assert run(capsys, "read", str(odd), "--out", str(text), *ASK)[0] == 0
    assert (text / f"{odd.stem}.md").exists()
    (text / "index.jsonl").unlink()  # as after a kill
    assert run(capsys, "read", str(odd), "--out", str(text), *ASK)[0] == 0


def test_what_a_kill_left_of_a_file_is_no_document(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "b.jpg").unlink()
    (folder / "text").mkdir()
    (folder / "text/a.md.0123456789ab.partial").write_text("half of it")
    assert run(capsys, "read", str(folder), "--out", str(folder / "text"), *ASK)[0] == 0
    assert {row["file"] for row in index_of(folder / "text")} == {str(folder / "a.tif"), str(folder / "sub/a.png")}


def test_what_is_closed_or_gone_in_a_folder_is_a_failure_of_its_own(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "closed").mkdir()
    (folder / "gone.png").symlink_to("nowhere.png")
    scandir = os.scandir

    def refused(path: Any = ".") -> Any:  # by mode it would be open to root, as whom tests may run
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    status, _, err = run(capsys, "read", str(folder), "--out", str(tmp_path / "out"), *ASK)
    assert (status, err.count("\n")) == (1, 3)
    assert f"{folder}/closed cannot be read: Permission denied" in err
    assert f"{folder}/gone.png cannot be read: it is a link to what is not there" in err
    assert sum(row["error"] is None for row in index_of(tmp_path / "out")) == 3


def test_pages_that_were_cut_off_are_said(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    args = ("read", str(folder / "sub"), "--out", str(tmp_path / "out"), "--max-tokens", "1", "--json", *ASK)
    status, out, err = run(capsys, *args)
    assert (status, json.loads(out)["cut_off"]) == (0, 1)
    assert err == "1 of 1 pages were cut off at the longest answer (index.jsonl says which): see --max-tokens\n"


@pytest.mark.parametrize("command", ["read", "extract"])
def test_a_reader_who_has_left_does_not_hide_failures(
    command: str, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: Any) -> None:
        raise ReaderLeftError

    for module in ("read", "extract"):
        monkeypatch.setattr(f"pocketvlm.cli.{module}.put", leave)
    out = {
        "read": ("--out", str(tmp_path / "out"), *ASK),
        "extract": ("--schema", "a: boolean", "--out", f"{tmp_path}/r.csv"),
    }
    assert run(capsys, command, str(folder), *out[command])[0] == 1
