"""Looking into documents in a process of its own: whatever a file does to it costs that file alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pocketvlm.documents import reading
from pocketvlm.documents.inputs import Document, find_files, open_documents
from pocketvlm.errors import EngineError, MediaError
from pocketvlm.processing.media import document_opener
from pocketvlm.processing.media.document_opener import DocumentOpener
from pocketvlm.processing.media.sources import NamedBytes


@pytest.fixture
def opener() -> Iterator[DocumentOpener]:
    with DocumentOpener() as opener:
        yield opener


@pytest.fixture
def tiff(tmp_path: Path) -> str:
    path, pages = tmp_path / "three.tiff", [Image.new("1", (20, 30), number % 2) for number in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return str(path)


def test_pages_are_those_that_are_wanted_of_a_path_or_of_content(opener: DocumentOpener, tiff: str) -> None:
    body = Path(tiff).read_bytes()
    assert opener.pages(tiff) == (1, 2, 3)
    assert opener.pages(f"{tiff}#3,1-2,1") == (3, 1, 2)
    assert opener.pages(NamedBytes(body, "s3://b/three.tiff", "2-")) == (2, 3)
    assert opener.texts(tiff, (1,)) is None
    process = opener._process
    assert process is not None
    with pytest.raises(MediaError, match=r"three\.tiff has 3 pages, there is no page 4"):
        opener.pages(f"{tiff}#4")
    with pytest.raises(MediaError, match="no-such"):
        opener.pages("no-such.pdf")
    assert opener._process is process
    assert process.poll() is None


def test_a_process_that_somebody_ended_is_replaced_and_asked_again(opener: DocumentOpener, tiff: str) -> None:
    assert opener.pages(tiff) == (1, 2, 3)
    ended = opener._process
    assert ended is not None
    os.kill(ended.pid, signal.SIGKILL)
    assert opener.pages(tiff) == (1, 2, 3)
    assert opener._process is not ended


def test_what_hangs_is_ended_and_not_asked_again(tiff: str) -> None:
    with DocumentOpener(seconds=30) as opener:
        assert opener.pages(tiff) == (1, 2, 3)
        stopped = opener._process
        assert stopped is not None
        os.kill(stopped.pid, signal.SIGSTOP)
        opener._seconds = 0.2
        with pytest.raises(MediaError, match=r"three\.tiff: looking into it took more than 0\.2 seconds"):
            opener.pages(tiff)
        assert stopped.returncode == -signal.SIGKILL
        opener._seconds = 30
        assert opener.pages(tiff) == (1, 2, 3)


def test_a_file_that_crashes_the_decoder_is_one_document_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is ours but for one file, at which it ends as by a fault of memory."""
    for name in ("a.png", "crash.png", "z.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def crash(event, about):\n"
        "    if event == 'open' and str(about[0]).endswith('crash.png'): os.abort()\n"
        "sys.addaudithook(crash)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    documents = list(open_documents(find_files([str(tmp_path / "*.png")])))
    assert [document.pages for document in documents] == [(1,), (), (1,)]
    assert [document.error for document in documents] == [
        None,
        f"{tmp_path / 'crash.png'}: the decoder crashed. Save the file anew.",
        None,
    ]


@pytest.mark.parametrize(
    "answer",
    ["", "no JSON", "null", "[" * 100_000, '{"found": null}', '{"found": []}', '{"found": ["x"]}', '{"found": [0]}',
     '{"found": [1e400]}', '{"found": [true]}', '{"other": 1}'],
)  # fmt: skip
def test_whatever_a_process_that_was_taken_over_says_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiff: str, answer: str
) -> None:
    (tmp_path / "answer").write_text(answer)
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport pickle, sys\n"
        'pickle.load(sys.stdin.buffer)\nprint(\'{"found": "ready"}\', flush=True)\n'
        f"pickle.load(sys.stdin.buffer)\nprint(open({str(tmp_path / 'answer')!r}).read(), flush=True)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with DocumentOpener() as opener, pytest.raises(MediaError, match=r"three\.tiff: the decoder crashed"):
        opener.pages(tiff)
    with DocumentOpener() as opener:
        if answer == '{"found": null}':
            assert opener.texts(tiff, (1,)) is None  # as of what is no PDF
        else:
            with pytest.raises(MediaError, match="the decoder crashed"):
                opener.texts(tiff, (1, 2))


@pytest.mark.parametrize("program", ["/bin/false", "/no/such/python"])
def test_a_process_that_does_not_start_is_no_fault_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tiff: str, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with DocumentOpener() as opener, pytest.raises(EngineError, match="process that opens documents"):
        opener.pages(tiff)


def test_it_starts_where_the_package_is_found_from_the_working_directory(
    tiff: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(document_opener.__file__).parents[3]
    monkeypatch.chdir(package)
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if Path(path) != package)])
    with DocumentOpener() as opener:
        assert opener.pages(tiff) == (1, 2, 3)


def test_text_that_cannot_be_had_is_logged_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading, "_PAGES_AT_ONCE", 2)
    asked = list[tuple[int, ...]]()

    def texts(_self: object, _source: object, pages: tuple[int, ...]) -> list[str]:
        asked.append(tuple(pages))
        if 3 in pages:
            raise MediaError("a.pdf: the decoder crashed")
        return [f"page {page}" for page in pages]

    monkeypatch.setattr(DocumentOpener, "texts", texts)
    document = Document("a.pdf", tmp_path / "a.pdf", pages=(1, 2, 3, 4, 5))
    with reading.text_layers(True) as layers:
        assert layers is not None
        assert layers(document) == ["page 1", "page 2", None, None, "page 5"]
    assert asked == [(1, 2), (3, 4), (5,)]
    (record,) = caplog.records
    assert "pages 3 to 4 have no text layer: a.pdf: the decoder crashed" in record.message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux shows what a process is held to")
def test_it_is_held_to_its_memory_and_leaves_ctrl_c_to_its_owner(opener: DocumentOpener, tiff: str) -> None:
    opener.pages(tiff)
    process = opener._process
    assert process is not None
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max address space"))
    assert document_opener.MEMORY < int(line.split()[3]) < 2 * document_opener.MEMORY
    status = Path(f"/proc/{process.pid}/status").read_text()
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    assert ignored >> (signal.SIGINT - 1) & 1


def test_a_question_that_was_interrupted_does_not_answer_the_next_one(
    opener: DocumentOpener, tiff: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opener.pages(tiff) == (1, 2, 3)

    def interrupted(_: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(document_opener, "json", SimpleNamespace(loads=interrupted))
        with pytest.raises(KeyboardInterrupt):
            opener.pages(f"{tiff}#2")
    assert opener.pages(f"{tiff}#3") == (3,)


def test_the_process_ends_with_its_owner_and_with_whoever_asks(tiff: str) -> None:
    with DocumentOpener() as opener:
        opener.pages(tiff)
        process: Any = opener._process
    assert process.returncode is not None
    orphan = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys\n"
            "from pocketvlm.processing.media.document_opener import DocumentOpener\n"
            "opener = DocumentOpener()\n"
            f"opener.pages({tiff!r})\n"
            "print(opener._process.pid, flush=True)\n"
            "os._exit(1)",
        ],
        capture_output=True,
        check=False,
    )
    pid, gone = int(orphan.stdout), threading.Event()
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        gone.wait(0.1)
    else:
        pytest.fail("it lives on")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is one of Linux")
def test_memory_beyond_the_limit_is_refused() -> None:
    code = (
        "from pocketvlm.processing.confinement import confine\n"
        "confine(2**28)\n"
        "bytearray(2**27)\n"
        "try:\n    bytearray(2**29)\nexcept MemoryError:\n    print('refused')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"refused\n"
