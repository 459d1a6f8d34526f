"""Files are written complete or not at all, journals go on where they were cut, and nothing else is harmed."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pocketvlm import files
from pocketvlm.errors import ConfigError
from pocketvlm.files import check_output, file_ids, lock, open_journal, whole_file


def other_settings(name: str, found: Any, wanted: Any) -> ConfigError:
    return ConfigError(f"{name}: {found}, not {wanted}")


def journal(path: Path, settings: dict[str, Any] | None = None) -> Any:
    return open_journal(path, "a test", settings or {}, other_settings)


def special_files(folder: Path) -> dict[str, Path]:
    """Names that stand for something else than an ordinary file, by what they are."""
    folder.mkdir()
    (folder / "target").write_text("kept")
    (folder / "link").symlink_to("target")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "directory").mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
    names = {"a symbolic link": "link", "a directory": "directory", "a pipe": "pipe", "a socket": "socket"}
    return {
        "a device": Path("/dev/null"),
        "a symbolic": folder / "dangling",
        **{kind: folder / name for kind, name in names.items()},
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices as POSIX has them")
def test_what_is_no_ordinary_file_is_refused_and_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    for kind, path in special_files(tmp_path / "special").items():
        before = path.lstat()
        for opened in (whole_file, journal):
            with pytest.raises(ConfigError, match=f"cannot be written: it is {kind}"), opened(path):
                pytest.fail("it was opened")
        assert path.lstat() == before
    assert (tmp_path / "special" / "target").read_text() == "kept"
    assert not (tmp_path / "special" / "nowhere").exists()


def test_an_input_is_not_written_over_by_any_of_its_names(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("kept")
    os.link(given, tmp_path / "other")
    for name in ("given", "other", "../" + tmp_path.name + "/given"):
        with pytest.raises(ConfigError, match="both input and output"), whole_file(tmp_path / name, inputs=[given]):
            pytest.fail("it was opened")
    assert given.read_text() == "kept"
    assert not check_output(tmp_path / "new", inputs=[given, tmp_path / "missing"])


@pytest.mark.parametrize("name", ["missing/file", "x" * 300, "zero\0byte", "file/below"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for opened in (whole_file, journal):
        with pytest.raises(ConfigError), opened(tmp_path / name):
            pytest.fail("it was opened")


def test_a_file_appears_complete_and_keeps_the_permissions_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)  # 254 bytes: no longer name would be possible
    for content in (b"first", b"second"):
        with whole_file(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]
        if content == b"first":
            path.chmod(0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def fail_in_the_middle() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_files_named_like_our_partial_ones_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "same")
    foreign = tmp_path / "out.same.partial"
    foreign.write_text("kept")
    with pytest.raises(ConfigError, match="cannot be written"), whole_file(tmp_path / "out"):
        pytest.fail("it was opened")
    assert foreign.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [foreign]


FULL_DISK = """
import resource, sys
from pathlib import Path
from pocketvlm.errors import ConfigError, OutputError
from pocketvlm.files import open_journal, whole_file

folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may be longer: as a full disk has it
try:
    with whole_file(folder / "whole") as file:
        file.write(b"x" * 2000)
except OutputError as error:
    print(error)
try:
    with open_journal(folder / "journal", "a test", {}, lambda *_: ConfigError("other")) as journal:
        for _ in range(3):
            journal.append({"text": "x" * 400})
except OutputError as error:
    print(error)
try:
    with open_journal(folder / "long", "a test", {"long": "x" * 2000}, lambda *_: ConfigError("other")):
        pass
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the length of files")
def test_a_full_disk_is_one_line_and_keeps_what_is_whole(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / name) for name in ("whole", "journal", "long")
    ]
    assert done.stdout.count("cannot be written") == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "journal"]
    assert [len(line) > 400 for line in (tmp_path / "journal").read_text().splitlines()] == [False, True, True]


def test_a_journal_goes_on_from_every_byte_it_can_be_cut_at(tmp_path: Path) -> None:
    path, values = tmp_path / "out", [{"n": 1}, {"text": "é猫\n"}]
    with journal(path) as first:
        offsets = [first.append(value) for value in values]
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with journal(path) as again:
            kept = list(again.lines())
            assert [offset for _, offset, _ in kept] == offsets[: len(kept)]
            for value in values[len(kept) :]:
                again.append(value)
        assert path.read_bytes() == whole


def test_a_journal_of_nothing_goes_but_an_empty_file_of_the_user_stays(tmp_path: Path) -> None:
    made, found = tmp_path / "made", tmp_path / "found"
    found.touch()
    for path in (made, found):
        with journal(path) as opened:
            assert list(opened.lines()) == []
    assert not made.exists()
    assert found.read_bytes() == b""
    # Whoever opens it and fails before reading its lines does not take them away.
    with journal(made) as opened:
        opened.append({})
    with pytest.raises(RuntimeError), journal(made):
        raise RuntimeError
    assert made.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "content",
    [b"notes\n", b"\0" * 50, b"[" * 100_000 + b"\n", b'{"format": "a test", "settings": 1}\n', b"\xff\n", b"null\n"],
)
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a file of results"), journal(path):
        pytest.fail("it was opened")
    assert path.read_bytes() == content


def test_a_journal_has_one_writer_and_one_kind_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with journal(path, {"a": 1}) as opened:
        opened.append({})
        with pytest.raises(ConfigError, match="another run"), journal(path, {"a": 1}):
            pytest.fail("it was opened")
    for settings in ({"a": 2}, {"b": 1}):
        with pytest.raises(ConfigError, match="a: 1, not"), journal(path, settings):
            pytest.fail("it was opened")
    with journal(path, {"a": 1}) as opened:
        assert len(list(opened.lines())) == 1


def test_the_lock_of_windows_lies_behind_all_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (3, 1)
        if (place := os.lseek(descriptor, 0, os.SEEK_CUR)) in places:
            raise PermissionError
        places.append(place)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=3, locking=locking))
    with journal(tmp_path / "out") as opened:
        opened.append({"n": 1})
        with pytest.raises(ConfigError, match="another run"), journal(tmp_path / "out"):
            pytest.fail("it was opened")
    assert places[0] > 2**32
    assert (tmp_path / "out").stat().st_size < 1000
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    with (tmp_path / "out").open("a+b", buffering=0) as file:
        assert lock(file)


def test_what_is_read_is_told_by_the_file_and_not_by_its_name(tmp_path: Path) -> None:
    given, other = tmp_path / "given", tmp_path / "other"
    given.write_text("kept")
    os.link(given, tmp_path / "same")
    read = file_ids([given, tmp_path / "missing", Path("a\0b")])
    assert len(read) == 1
    with pytest.raises(ConfigError, match="both input and output"):
        check_output(tmp_path / "same", read=read)
    other.write_text("free")
    assert check_output(other, read=read)
