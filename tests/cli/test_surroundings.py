"""The command line survives its surroundings: consoles, files, pipes and terminals as real descriptors."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.terminal import run_on_terminal, run_process, run_unread

import pocketvlm
from pocketvlm.cli import chat, console, main
from pocketvlm.cli.common import files_read, source
from pocketvlm.config_files import ConfigFiles
from pocketvlm.errors import CheckpointError, PromptError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors as POSIX has them")

ANSWER = "é 猫 😀"
# Console → what of `ANSWER` it shows, and how it stands there in JSON.
CONSOLES = {
    "gbk": ("é 猫 \\U0001f600", "\\u00e9 \\u732b \\ud83d\\ude00"),
    "cp1252": ("é \\u732b \\U0001f600", "\\u00e9 \\u732b \\ud83d\\ude00"),
    "ascii": ("\\xe9 \\u732b \\U0001f600", "\\u00e9 \\u732b \\ud83d\\ude00"),
    "utf-8": (ANSWER, ANSWER),
}


@pytest.mark.parametrize("encoding", CONSOLES)
def test_nothing_printed_is_lost_on_a_console_without_its_characters(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    console.prepare()
    console.put(ANSWER)
    console.put_json({"text": ANSWER})
    console.put_rich(ANSWER)
    text, line, rich = printed.getvalue().decode(encoding).splitlines()
    shown, as_json = CONSOLES[encoding]
    assert (text, rich, line) == (shown, shown, f'{{"text": "{as_json}"}}')
    assert json.loads(line) == {"text": ANSWER}


def test_an_answer_is_not_lost_on_a_console_without_its_characters(seeded_checkpoint: Callable[[int], Path]) -> None:
    ask = ("ask", "Which?", "--choice", ANSWER, "--model", str(seeded_checkpoint(0)))
    done = run_process(*ask, PYTHONIOENCODING="gbk")
    assert (done.status, done.out.decode("gbk"), done.err) == (0, f"{CONSOLES['gbk'][0]}\n", b"")


def test_a_message_names_what_was_given_on_every_console() -> None:
    done = run_process("plan", f"{ANSWER}.png", PYTHONIOENCODING="ascii")
    assert (done.status, done.out, done.err.count(b"\n")) == (2, b"", 1)
    assert CONSOLES["ascii"][0] in done.err.decode("ascii")


@pytest.mark.parametrize(
    ("arguments", "shell"),
    [
        (("--help",), ">/dev/full"),  # argparse prints it
        (("--version",), ">&-"),
        (("plan", "448x448"), ">/dev/full"),  # a table
        (("plan", "448x448", "--json"), ">&-"),
    ],
)
def test_output_that_cannot_be_written_is_one_line_and_status_1(arguments: tuple[str, ...], shell: str) -> None:
    done = run_process(*arguments, shell=shell)
    assert (done.status, done.out, done.err.count(b"\n")) == (1, b"", 1)
    assert b"the output could not be written" in done.err


def test_where_nothing_can_be_written_the_status_says_it() -> None:
    assert run_process("plan", "448x448", shell=">/dev/full 2>&-") == (1, b"", b"")


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full"])
def test_messages_that_cannot_be_written_never_stand_in_the_output(shell: str) -> None:
    assert run_process("plan", "nonsense", shell=shell) == (2, b"", b"")
    assert run_process("plan", "--nonsense", shell=shell) == (2, b"", b"")
    done = run_process("plan", "448x448", "--json", shell=shell)
    assert (done.status, len(json.loads(done.out)["plans"])) == (0, 1)


def test_a_reader_that_has_gone_is_no_failure() -> None:
    for arguments in (("--help",), ("plan", "448x448"), ("plan", "448x448", "--json")):
        assert run_unread(*arguments) == (0, b"", b""), arguments


def test_a_file_that_is_opened_later_does_not_take_the_place_of_a_closed_stream(
    tmp_path: Path, seeded_checkpoint: Callable[[int], Path]
) -> None:
    """With stdout and stderr closed, the next file that is opened would get their numbers, and their text."""
    saved = tmp_path / "trace.npz"
    trace = ("trace", "--prompt", "What?", "--max-tokens", "1", "--model", str(seeded_checkpoint(0)))
    done = run_process(*trace, "--save", str(saved), shell="<&- >&- 2>&-")
    assert done == (1, b"", b"")
    assert saved.read_bytes()[:4] == b"PK\x03\x04"


def test_a_conversation_ends_where_its_input_is_closed(seeded_checkpoint: Callable[[int], Path]) -> None:
    assert run_process("chat", "--model", str(seeded_checkpoint(0)), shell="<&-") == (0, b"", b"")


def test_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße\n".encode("latin-1")), encoding="utf-8"))
    with pytest.raises(PromptError, match="not text in utf-8"):
        chat.read_line(interactive=False)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_bytes_that_are_no_text_are_told_as_such(locale: str, seeded_checkpoint: Callable[[int], Path]) -> None:
    model = ("--model", str(seeded_checkpoint(0)))
    done = run_process("chat", "--max-tokens", "1", *model, stdin=b"hi\n\xff\xfe\nbye\n", LC_ALL=locale, PYTHONUTF8="1")
    assert (done.status, done.err.count(b"\n")) == (2, 1)
    assert b"line 2 of the input is not text in UTF-8" in done.err
    done = run_process("ask", "\udcff\udcfe", *model, LC_ALL=locale, PYTHONUTF8="1")
    assert (done.status, done.err.count(b"\n")) == (2, 1)
    assert b"the question is not text in UTF-8" in done.err


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_name_of_any_bytes_is_a_path(tmp_path: Path) -> None:
    from PIL import Image

    name = tmp_path / "a\udcff.png"
    done = run_process("plan", str(name))
    assert (done.status, done.err.count(b"\n")) == (2, 1)
    assert b"a\\xff.png does not exist" in done.err
    with name.open("wb") as file:
        Image.new("RGB", (64, 64)).save(file, "PNG")
    assert run_process("plan", str(name)).status == 0


def test_what_is_piped_on_holds_no_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`pocketvlm chat | tee log`: the user types on a terminal, and stdout is none."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert chat.read_line(interactive=True) == "Hello"
    assert capsys.readouterr() == ("", "> ")


def test_ctrl_c_ends_a_conversation_without_a_traceback(seeded_checkpoint: Callable[[int], Path]) -> None:
    done = run_on_terminal(
        "chat", "--model", str(seeded_checkpoint(0)), press=b"\x03", when=lambda _, shown: b"> " in shown
    )
    # A process that Python ends by the signal itself has the same status in a shell.
    assert done.status in (130, -2)
    assert b"Traceback" not in done.out


def test_lines_of_a_conversation_can_be_edited(seeded_checkpoint: Callable[[int], Path]) -> None:
    keys = b"/qut\x02i\r"  # Ctrl-B goes a letter back
    done = run_on_terminal(
        "chat", "--model", str(seeded_checkpoint(0)), press=keys, when=lambda _, shown: b"> " in shown
    )
    assert done.status == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found as Linux shows them")
def test_ctrl_c_ends_a_benchmark_and_its_workers_without_a_traceback(seeded_checkpoint: Callable[[int], Path]) -> None:
    workers: set[str] = set()

    def is_worker(process: str) -> bool:
        with suppress(OSError):  # it has ended
            return "spawn_main" in Path(f"/proc/{process}/cmdline").read_text()
        return False

    def has_worker(process: int, _shown: bytes) -> bool:
        workers.update(filter(is_worker, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
        return bool(workers)

    bench = ("bench", "offline", "--runs", "torch", "--lines", "decode1", "--model", str(seeded_checkpoint(0)))
    done = run_on_terminal(*bench, press=b"\x03", when=has_worker)
    assert done.status in (130, -2)
    assert b"Traceback" not in done.out
    while any(map(is_worker, workers)):  # what was told to end may need a moment
        time.sleep(0.01)


def test_files_that_are_read_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    directory = ModelDirectory("m", tmp_path, "checkpoint", ConfigFiles())
    assert files_read(directory, ["a.png", "http://host/b.png"]) == [Path("a.png"), tmp_path / "config.json"]
    assert files_read(None) == []
    assert {file.name for file in files_read(resolve("nano"))} >= {"config.json", "model.safetensors"}
    tmp_path.joinpath("config.json").unlink()
    tmp_path.rmdir()
    with pytest.raises(CheckpointError, match="m cannot be listed"):
        files_read(directory)


@pytest.mark.parametrize("start", ["http://", "https://", "data:", "HTTP://", "Https://", "DATA:"])
def test_a_url_stays_a_url_on_the_command_line_in_any_case(start: str) -> None:
    """As in the API and in `batch`."""
    assert source(start + "host/a.png") == start + "host/a.png"
    assert files_read(None, [start + "host/a.png"]) == []


def test_everything_else_on_the_command_line_is_a_path() -> None:
    for text in ("a.png", "https", "data", "data/a.png", "http:/a.png"):
        assert source(text) == Path(text)


def test_an_answer_in_a_conversation_stays_on_the_screen(seeded_checkpoint: Callable[[int], Path]) -> None:
    """No progress bar is drawn over it, nor over what is typed next."""
    model = ("--model", str(seeded_checkpoint(0)), "--max-tokens", "3")
    done = run_on_terminal("chat", *model, press=b"Hello\r/quit\r", when=lambda _, shown: b"> " in shown)
    assert done.status == 0
    behind = done.out[done.out.rindex(b"Hello") :]
    assert b"Reading" not in behind
    assert done.out.count(b"\x1b[?25l") == done.out.count(
        b"\x1b[?25h"
    )  # the cursor is hidden no longer than a bar is there


def test_two_dashes_end_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "word.png", "-dash.png")
    assert main(["plan", "--", "-dash.png"]) == 0
    assert main(["plan", "--max-slice-nums", "1", "--", "-dash.png", "64x64"]) == 0
    with pytest.raises(SystemExit):
        main(["plan", "-dash.png"])


@pytest.mark.parametrize("words", [("no.png", "What?"), ("What does it say?", "word.png"), ("word.png", "word.png")])
def test_a_question_that_is_not_there_or_not_last_is_told(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "word.png", "word.png")
    assert main(["ask", *words]) == 2
    assert "question" in capsys.readouterr().err


def test_progress_that_began_ends(seeded_checkpoint: Callable[[int], Path]) -> None:
    seen = list[tuple[int, int]]()
    with pocketvlm.load(seeded_checkpoint(0)) as vlm:
        vlm.progress = lambda _, done, total: seen.append((done, total))
        vlm.chat([{"role": "user", "content": "Hello " * 400}], max_tokens=2)
    assert [done == total for done, total in seen] == [False] * (len(seen) - 1) + [True]
    assert len(seen) > 1
