"""Requests, documents and outputs on a storage elsewhere, and as tables: the same results as from files here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from helpers.command import run
from moto.server import ThreadedMotoServer
from PIL import Image
from pyarrow import parquet

from pocketvlm import remote_files
from pocketvlm.api.vlm import VLM
from pocketvlm.documents import inputs
from pocketvlm.errors import ConfigError, OutputError
from pocketvlm.machine import cache_directory
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.remote_files import forget_contents, is_remote, read_remote

RECEIPT = Path("examples/receipt.png").resolve()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of a bucket of S3, which a server of this machine has."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("receipts")
        yield "s3://receipts"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a folder in the memory of this process."""
    folder = f"memory://{request.node.name.partition('[')[0]}"
    yield folder
    fsspec.filesystem("memory").store.clear()
    forget_contents()


def put(url: str, body: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(body)


def get(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


def requests(count: int = 3) -> list[dict[str, Any]]:
    def body(number: int) -> dict[str, Any]:
        content = [{"type": "image", "image": "receipt.png"}, {"type": "text", "text": f"Total?{' ' * number}"}]
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 3}

    names = [f"n{number}" for number in range(count)]
    return [
        {"custom_id": n, "method": "POST", "url": "/v1/chat/completions", "body": body(i)} for i, n in enumerate(names)
    ]


def as_lines(asked: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in asked).encode()


def as_table(asked: list[dict[str, Any]], body: Callable[[Any], Any]) -> bytes:
    file = BytesIO()
    rows = [{"custom_id": one["custom_id"], "body": body(one["body"]), "more": 1} for one in asked]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.mark.parametrize("body", [json.dumps, lambda value: value], ids=["text", "struct"])
def test_tables_of_a_bucket_are_answered_as_files_here_are(
    bucket: str, body: Callable[[Any], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    put(f"{bucket}/{body.__name__}/in.parquet", as_table(requests(), body))
    put(f"{bucket}/{body.__name__}/receipt.png", RECEIPT.read_bytes())
    out = f"{bucket}/{body.__name__}/out.parquet"
    status, _, err = run(capsys, "batch", f"{bucket}/{body.__name__}/in.parquet", out)
    assert status == 0, err
    (tmp_path / "in.jsonl").write_bytes(as_lines(requests()))
    (tmp_path / "receipt.png").write_bytes(RECEIPT.read_bytes())
    run(capsys, "batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    here = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    there = parquet.read_table(BytesIO(get(out))).to_pylist()
    assert [row["custom_id"] for row in there] == [line["custom_id"] for line in here]
    for row, line in zip(there, here, strict=True):
        choices = line["response"]["body"]["choices"]
        assert (row["status_code"], row["content"]) == (200, choices[0]["message"]["content"])
        assert json.loads(row["body"])["choices"] == choices


def test_what_is_there_is_not_replaced_unasked_and_a_run_leaves_nothing_behind(
    memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(f"{memory}/in.jsonl", as_lines(requests(1)))
    put(f"{memory}/receipt.png", RECEIPT.read_bytes())
    put(f"{memory}/out.jsonl", b"precious")
    status, _, err = run(capsys, "batch", f"{memory}/in.jsonl", f"{memory}/out.jsonl")
    assert (status, err.count("\n")) == (2, 1)
    assert "already there" in err
    assert get(f"{memory}/out.jsonl") == b"precious"
    assert run(capsys, "batch", "--overwrite", f"{memory}/in.jsonl", f"{memory}/out.jsonl")[0] == 0
    assert json.loads(get(f"{memory}/out.jsonl"))["response"]["status_code"] == 200
    left = [path.name for path in (cache_directory() / "elsewhere").rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".partial", "out.jsonl"))]


def test_documents_are_read_and_written_elsewhere(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = BytesIO()
    picture = Image.open(RECEIPT).convert("RGB")
    picture.save(made, "PDF", save_all=True, append_images=[picture])
    put(f"{memory}/in/a.pdf", made.getvalue())
    put(f"{memory}/in/deep/b.png", RECEIPT.read_bytes())
    put(f"{memory}/in/c.png", b"broken")
    options = ("--max-tokens", "4", "--json")
    status, out, err = run(capsys, "read", f"{memory}/in", "--out", f"{memory}/text", *options)
    assert (status, json.loads(out)["out"]) == (1, f"{memory}/text")
    assert "c.png" in err
    assert b"<!-- page 2 -->" in get(f"{memory}/text/a.md")
    assert get(f"{memory}/text/deep/b.md")
    index = [json.loads(line) for line in get(f"{memory}/text/index.jsonl").decode().splitlines()]
    assert [(row["page"], bool(row["error"])) for row in index] == [(1, False), (2, False), (None, True), (1, False)]
    assert json.loads(get(f"{memory}/text/failed.jsonl"))["error"]
    # One page of it, as a row of a table.
    row = f"{memory}/row.csv"
    schema = ("--schema", "total: number", "--max-tokens", "24")
    assert run(capsys, "extract", f"{memory}/in/a.pdf#2", "--out", row, *schema)[0] in (0, 1)
    assert get(row).decode().count("a.pdf#2") == 1


def test_a_text_is_sent_whatever_its_name_begins_with(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(f"{memory}/.a.png", RECEIPT.read_bytes())
    assert run(capsys, "read", f"{memory}/.a.png", "--out", f"{memory}/text", "--max-tokens", "4")[0] == 0
    assert get(f"{memory}/text/.a.md")
    assert not fsspec.filesystem("memory").exists(f"{memory}/text/.journal")


def test_a_run_removes_nothing_that_it_would_not_write(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(f"{memory}/receipt.png", RECEIPT.read_bytes())
    put(f"{memory}/in.jsonl", "".join(f"{json.dumps(one)}\n" for one in requests(1)).encode())
    for name in ("out.jsonl.failed.jsonl", "receipts.csv.review.html"):
        put(f"{memory}/{name}", b"mine")
    assert run(capsys, "batch", f"{memory}/in.jsonl", f"{memory}/out.jsonl")[0] == 0
    schema = ("--schema", "total: string", "--max-tokens", "24")
    assert run(capsys, "extract", f"{memory}/receipt.png", "--out", f"{memory}/receipts.csv", *schema)[0] in (0, 1)
    for name in ("out.jsonl.failed.jsonl", "receipts.csv.review.html"):
        assert get(f"{memory}/{name}") == b"mine"


def test_a_bucket_is_never_made_by_the_way(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(f"{bucket}/bucketless/in.jsonl", as_lines(requests(1)))
    status, _, err = run(capsys, "batch", f"{bucket}/bucketless/in.jsonl", "s3://reciepts/out.jsonl")
    assert (status, err.count("\n")) == (2, 1)
    assert "no bucket 'reciepts'" in err
    assert not fsspec.filesystem("s3").exists("reciepts")


def test_a_dry_run_sends_nothing_and_leaves_what_resumes_a_run(
    memory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"{memory}/in/a.png", RECEIPT.read_bytes())
    put(f"{memory}/in/b.png", RECEIPT.read_bytes() + b"0")
    out = f"{memory}/rows.csv"
    command = ("extract", f"{memory}/in", "--schema", "total: number", "--max-tokens", "24", "--out", out)

    def journals() -> list[bytes]:
        return [path.read_bytes() for path in (cache_directory() / "elsewhere").rglob("rows.csv.journal")]

    with monkeypatch.context() as patch:
        patch.setattr("pocketvlm.cli.elsewhere.send", lambda *_: (_ for _ in ()).throw(OutputError("no network")))
        assert run(capsys, *command)[0] == 1
    (journal,) = journals()
    assert run(capsys, *command, "--dry-run")[0] == 0
    assert journals() == [journal]
    assert run(capsys, *command)[0] in (0, 1)  # it goes on, and sends
    assert get(out).decode().count(".png") == 2


def test_a_finished_run_elsewhere_is_repeated_from_its_journal_and_reads_nothing_of_its_own(
    memory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"{memory}/in/a.png", RECEIPT.read_bytes())
    put(f"{memory}/in/c.png", b"broken")
    put(f"{memory}/in/.DS_Store", b"hidden")
    out = f"{memory}/in/rows.csv"
    command = ("extract", f"{memory}/in", "--schema", "total: number", "--max-tokens", "24", "--out", out)
    assert run(capsys, *command)[0] == 1
    assert get(f"{out}.failed.jsonl").count(b"\n") >= 1
    put(f"{memory}/in/c.png", RECEIPT.read_bytes())
    monkeypatch.setattr(VLM, "as_completed", None)  # nothing is asked again: both are the same picture
    status, _, err = run(capsys, *command, "--overwrite")
    rows = get(out).decode().splitlines()
    assert [line.partition(",")[0].rpartition("/")[2] for line in rows[1:]] == ["a.png", "c.png"]
    if status == 1:  # the answer is no row; but what failed before did not fail again
        assert "cannot be read" not in get(f"{out}.failed.jsonl").decode(), err
    else:
        assert not fsspec.core.url_to_fs(out)[0].exists(f"{out}.failed.jsonl"), err


def test_names_in_a_bucket_may_be_any_text(bucket: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Empty parts, steps upwards, signs of pages and patterns, and names that stand for folders."""
    s3 = fsspec.filesystem("s3")
    names = ("odd//2024/a.png", "odd/../../up.png", "odd/inv#12.png", "odd/scan[1].png", "odd/a.pdf#2")
    for name in names:
        s3.pipe_file(f"receipts/{name}", RECEIPT.read_bytes())
    for folder in ("odd/", "odd/empty/"):
        s3.call_s3("put_object", Bucket="receipts", Key=folder, Body=b"")
    s3.invalidate_cache()
    status, _, err = run(capsys, "read", f"{bucket}/odd", "--out", str(tmp_path / "text"), "--max-tokens", "2")
    assert status == 0, err
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert written == {f"text/{name}.md" for name in ("2024/a", "_/_/up", "inv#12", "scan[1]", "a")}
    for name in names[2:]:  # each by its own name
        found = inputs.find_files([f"{bucket}/{name}"])
        assert [(file.url, file.choice) for file in found] == [(f"{bucket}/{name}", None)], name


def test_documents_elsewhere_may_be_as_large_as_those_here(memory: str) -> None:
    put(f"{memory}/large.png", RECEIPT.read_bytes() + bytes(21 * 2**20))
    (document,) = inputs.open_documents(inputs.find_files([f"{memory}/large.png"]))
    assert (document.error, document.pages) == (None, (1,))
    assert (load_image(inputs.page_source(document, 1)) == load_image(RECEIPT)).all()


def test_what_has_changed_elsewhere_is_seen(memory: str) -> None:
    put(f"{memory}/a.png", RECEIPT.read_bytes())
    (before,) = inputs.open_documents(inputs.find_files([f"{memory}/a.png"]))
    put(f"{memory}/a.png", RECEIPT.read_bytes() + b"0")
    (after,) = inputs.open_documents(inputs.find_files([f"{memory}/a.png"]))
    assert before.digest != after.digest


def test_threads_that_want_the_same_file_wait_for_one_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that failed is tried again by the next."""
    began, may_end, downloads = threading.Event(), threading.Event(), []

    def download(url: str) -> bytes:
        downloads.append(url)
        began.set()
        assert may_end.wait(60)
        if len(downloads) == 2:
            raise ConfigError("it is gone", hint="Look again.")
        return b"content"

    monkeypatch.setattr(remote_files, "_download", download)
    forget_contents()
    with ThreadPoolExecutor(4) as pool:
        several = [pool.submit(read_remote, "memory://a") for _ in range(4)]
        assert began.wait(60)
        may_end.set()
        assert [future.result() for future in several] == [b"content"] * 4
    assert downloads == ["memory://a"]
    with pytest.raises(ConfigError, match="gone"):
        read_remote("memory://b")
    assert read_remote("memory://b") == b"content"
    forget_contents()


def test_a_picture_elsewhere_may_be_asked_about(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(f"{memory}/receipt.png", RECEIPT.read_bytes())
    assert (load_image(f"{memory}/receipt.png") == load_image(RECEIPT)).all()
    asked = ("What is the total?", "--max-tokens", "2", "--temperature", "0")
    here = run(capsys, "ask", str(RECEIPT), *asked)
    assert run(capsys, "ask", f"{memory}/receipt.png", *asked) == here


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("batch", "memory://absent/in.jsonl", "out.jsonl"), "there is no file"),
        (("batch", "nosuch://bucket/in.jsonl", "out.jsonl"), "nosuch"),
        (("read", "memory://absent/", "--out", "out"), "there is no file"),
        (("extract", "memory://absent/*.pdf", "--schema", "a: string", "--out", "a.csv"), "there is no file"),
        (("ask", "memory://absent/a.png", "What?"), "there is no file"),
    ],
)
def test_what_is_not_there_is_one_line(
    command: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *command)
    assert (status, err.count("\n")) == (2, 1), err
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_table_without_requests_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"custom_id": ["a"]}), tmp_path / "in.parquet")
    (tmp_path / "bad.parquet").write_text("no table")
    whole = as_table(requests(400), json.dumps)
    damaged = bytearray(whole)
    damaged[40 : len(damaged) // 2] = bytes(len(damaged) // 2 - 40)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    refused = (("in", "no column body"), ("bad", "no table of"), ("damaged", "no table of"), ("absent", "no file"))
    for name, said in refused:
        status, _, err = run(capsys, "batch", str(tmp_path / f"{name}.parquet"), str(tmp_path / "out.jsonl"))
        assert (status, err.count("\n")) == (2, 1), err
        assert said in err


@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [
        ("s3://bucket/a.png", True),
        ("GS://bucket/a.png", True),
        ("https://host/a.png", False),
        ("HTTP://host/a.png", False),
        ("file:///a.png", False),
        ("data:image/png;base64,AAAA", False),
        ("a.png", False),
        ("C:\\a.png", False),
        ("folder/s3://a.png", False),
    ],
)
def test_which_names_are_addresses_of_a_storage(name: str, elsewhere: bool) -> None:
    assert is_remote(name) == elsewhere


def test_strangers_reach_no_storage(memory: str) -> None:
    put(f"{memory}/receipt.png", RECEIPT.read_bytes())
    with pytest.raises(ValueError, match="Paths are not accepted"):
        load_image(f"{memory}/receipt.png", files=False)


def test_documents_elsewhere_are_fetched_side_by_side_and_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are fetched at a time must be under way before the first of them ends; and never more than that."""
    together, running, most = threading.Barrier(inputs.FETCHED_AHEAD), 0, 0
    counting, body = threading.Lock(), RECEIPT.read_bytes()

    def fetch(url: str) -> bytes:
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
        if int(url.rpartition("/")[2].removesuffix(".png")) < inputs.FETCHED_AHEAD:
            together.wait(timeout=60)
        with counting:
            running -= 1
        if url.endswith("/3.png"):
            raise ConfigError("it is gone", hint="Look again.")
        return body

    monkeypatch.setattr(inputs, "read_remote", fetch)
    urls = [f"memory://receipts/{number}.png" for number in range(20)]
    found = [inputs.Found(url, Path(Path(url).name), url) for url in urls]
    documents = list(inputs.open_documents(found))
    assert [document.name for document in documents] == [file.name for file in found]
    assert [document.name for document in documents if document.error] == ["memory://receipts/3.png"]
    assert most == inputs.FETCHED_AHEAD


def test_documents_that_were_named_are_read_wherever_they_are(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also below the output, of which only what a run writes there is left out."""
    for name in ("in/a.png", "text/b.png", "text/c.png", "text/old.md", "text/index.jsonl"):
        put(f"{memory}/{name}", RECEIPT.read_bytes())
    out = ("--out", f"{memory}/text", "--max-tokens", "2", "--overwrite")
    assert run(capsys, "read", f"{memory}/in/a.png", f"{memory}/text/b.png", *out)[0] == 0
    index = [json.loads(line)["file"] for line in get(f"{memory}/text/index.jsonl").decode().splitlines()]
    assert index == [f"{memory}/in/a.png", f"{memory}/text/b.png"]
    assert run(capsys, "read", f"{memory}/text", *out)[0] == 0
    index = [json.loads(line)["file"] for line in get(f"{memory}/text/index.jsonl").decode().splitlines()]
    assert index == [f"{memory}/text/b.png", f"{memory}/text/c.png"]


def test_requests_are_never_their_own_results(memory: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    table.write_bytes(as_table(requests(1), json.dumps))
    put(f"{memory}/q.jsonl", as_lines(requests(1)))
    for name in (str(table), f"{memory}/q.jsonl"):
        status, _, err = run(capsys, "batch", name, name, "--overwrite")
        assert (status, err.count("\n"), "both input and output" in err) == (2, 1, True), err
    assert table.read_bytes() == as_table(requests(1), json.dumps)


def test_a_copy_of_requests_goes_with_the_run_and_is_never_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "t.parquet"
    table.write_bytes(as_table([{**requests(1)[0], "custom_id": 7}], json.dumps))
    status, _, err = run(capsys, "batch", str(table), str(tmp_path / "out.jsonl"))
    assert (status, err.startswith(f"pocketvlm batch: {table}, row 1: custom_id")) == (2, True), err
    assert not [one for one in (cache_directory() / "elsewhere").rglob("t.parquet*") if one.is_file()]
