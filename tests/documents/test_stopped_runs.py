"""`read` and `extract` that are stopped, or whose disk is full: nothing half-written, and nothing asked twice."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run

from pocketvlm.api.vlm import VLM
from pocketvlm.documents.reading import JOURNAL

PAGES = 5
JOB_BARS = "pocketvlm.cli.document_job.progress_bars"
WAYS = {
    "read": (("--out", "text", "--max-tokens", "3"), f"text/{JOURNAL}", "text/index.jsonl"),
    "extract": (
        ("--schema", "total: number", "--max-tokens", "24", "--out", "rows.csv"),
        "rows.csv.journal",
        "rows.csv",
    ),
}


@pytest.fixture(params=sorted(WAYS))
def command(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[str, ...], Path, Path]:
    """The arguments, the journal, and what is written at the end."""
    (tmp_path / "in").mkdir()
    picture = Path("examples/receipt.png").read_bytes()
    for number in range(PAGES):  # of five contents
        (tmp_path / f"in/{number}.png").write_bytes(picture + bytes([number]))
    monkeypatch.chdir(tmp_path)
    options, journal, written = WAYS[request.param]
    return (request.param, "in", *options, "--concurrency", "1"), tmp_path / journal, tmp_path / written


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked and answered, in all runs."""
    found, whole = [], VLM.as_completed

    def counted(self: VLM, requests: Any, **options: Any) -> Iterator[Any]:
        for one in whole(self, requests, **options):
            found.append(one[0])
            yield one

    monkeypatch.setattr(VLM, "as_completed", counted)
    return found


def test_ctrl_c_keeps_what_is_done(
    command: tuple[tuple[str, ...], Path, Path],
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, journal, written = command

    def press(_title: str, count: int, _total: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JOB_BARS, lambda unit: nullcontext(press if unit == "pages" else None))
        status, text, err = run(capsys, *arguments)
    assert (status, text, err.count("\n")) == (130, "", 1), err
    assert f"2 of {PAGES} pages are kept" in err
    assert journal.exists()
    assert not written.exists()
    assert run(capsys, *arguments)[0] in (0, 1)
    assert written.exists()
    assert len(asked) == len(set(asked)) == PAGES


def test_a_full_disk_keeps_what_is_done(
    command: tuple[tuple[str, ...], Path, Path],
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, journal, written = command
    plain = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_title: str, count: int, _total: int) -> None:
        if count == 2:  # from now on the journal may not grow
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, plain[1]))

    with monkeypatch.context() as patch:
        patch.setattr(JOB_BARS, lambda unit: nullcontext(fill if unit == "pages" else None))
        try:
            status, text, err = run(capsys, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, plain)
    assert (status, text, err.count("\n"), "File too large" in err) == (1, "", 1, True), err
    assert not written.exists()
    before = len(asked)
    assert run(capsys, *arguments)[0] in (0, 1)
    assert written.exists()
    assert len(asked) - before == PAGES - 2


def test_what_is_left_of_a_stopped_run_is_no_input_of_the_next(
    command: tuple[tuple[str, ...], Path, Path], asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, journal, written = command
    assert run(capsys, *arguments)[0] in (0, 1)
    journal.unlink()
    shutil.copy(Path("in/0.png"), Path("in/again.png"))
    assert run(capsys, *arguments, "--overwrite")[0] in (0, 1)
    assert written.exists()
    assert len(asked) == 2 * PAGES  # the same content under another name is asked once
