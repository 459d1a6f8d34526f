"""The fingerprint changes with every byte that can change an answer; what the cache says is never believed too far."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import CheckpointError
from pocketvlm.machine import CACHE_VARIABLE, cache_directory
from pocketvlm.model import fingerprint as module
from pocketvlm.model.fingerprint import fingerprint

LARGE = 3 * 2**20 + 5  # bytes: in the cache, and in several chunks once these are small


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a large file that looks as if nobody had touched it for long."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_CHUNK", 2**20)
    monkeypatch.setattr(module, "_YOUNG_NS", -(10**18))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(random.Random(0).randbytes(LARGE))
    return tmp_path / "model"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read, of_chunk = [], module._of_chunk

    def counted(file: Path, start: int) -> bytes:
        read.append(file)
        return of_chunk(file, start)

    monkeypatch.setattr(module, "_of_chunk", counted)
    return read


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as content:
        content.seek(place)
        byte = content.read(1)
        content.seek(place)
        content.write(bytes([byte[0] ^ 1]))


def test_any_byte_changed_in_any_file_changes_it(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    directory = shutil.copytree(seeded_checkpoint(0), tmp_path / "copy")
    names = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]
    assert {*names, "tokenizer_config.json", "chat_template.jinja", "model.safetensors"} <= {
        file.name for file in directory.iterdir()
    }
    before, seen = fingerprint(directory), set()
    for file in sorted(directory.iterdir()):
        size = file.stat().st_size
        for place in {0, size // 3, size - 1, random.Random(file.name).randrange(size)}:
            flip(file, place)
            seen.add(fingerprint(directory))
            flip(file, place)
    assert before not in seen
    assert fingerprint(directory) == before


def test_files_that_come_go_or_change_names_change_it(checkpoint: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(checkpoint, tmp_path / "copy")
    seen = [fingerprint(directory)]
    (directory / "processor_config.json").write_text("{}")
    seen.append(fingerprint(directory))
    (directory / "processor_config.json").rename(directory / "video_preprocessor_config.json")
    seen.append(fingerprint(directory))
    (directory / "chat_template.jinja").unlink()
    seen.append(fingerprint(directory))
    assert len(set(seen)) == 4
    (directory / "README.md").write_text("changes no answer")
    assert fingerprint(directory) == seen[-1]


def test_every_byte_of_a_large_file_counts_whatever_the_chunks(large: Path) -> None:
    seen, file = {fingerprint(large)}, large / "model.safetensors"
    for place in (0, 2**20 - 1, 2**20, 3 * 2**20, LARGE - 1):
        flip(file, place)
        seen.add(fingerprint(large))
    with file.open("ab") as content:
        content.write(b"\0")
    seen.add(fingerprint(large))
    assert len(seen) == 7


class ShortReads(io.FileIO):
    """A file of which a read gives fewer bytes than there is room for, as that of some file systems does."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[: max(1, len(buffer) * 2 // 3)])


def test_short_reads_change_nothing(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = large / "model.safetensors"
    right = [module._of_chunk(file, start) for start in range(0, LARGE, 2**20)]
    content = file.read_bytes()
    assert right == [hashlib.sha256(content[at : at + 2**20]).digest() for at in range(0, LARGE, 2**20)]
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: ShortReads(path))
    assert [module._of_chunk(file, start) for start in range(0, LARGE, 2**20)] == right


def test_a_large_file_is_read_once_and_a_copy_of_it_again(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    first = fingerprint(large)
    assert len(read) == 4
    assert fingerprint(large) == first
    assert len(read) == 4
    assert fingerprint(shutil.copytree(large, large.parent / "copy")) == first
    assert len(read) == 8


def test_a_rewrite_with_its_old_size_and_time_of_writing_is_noticed(large: Path) -> None:
    first, file = fingerprint(large), large / "model.safetensors"
    before = file.stat()
    time.sleep(0.02)  # longer than a tick of the clock that files are stamped by
    flip(file, 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert fingerprint(large) != first


def test_a_file_that_was_written_a_moment_ago_is_not_kept(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_YOUNG_NS", 3600 * 10**9)
    read = count_reads(monkeypatch)
    assert fingerprint(large) == fingerprint(large)
    assert len(read) == 8


@pytest.mark.parametrize("damage", ["empty", "cut", "digit", "other", "binary", "directory"])
def test_a_cache_that_is_damaged_is_ignored(large: Path, tmp_path: Path, damage: str) -> None:
    right = fingerprint(large)
    (entry,) = (tmp_path / "cache" / "fingerprints").iterdir()
    text = entry.read_text()
    if damage == "directory":
        entry.unlink()
        entry.mkdir()
    else:
        damaged = {
            "empty": b"",
            "cut": text[:-9].encode(),
            "digit": (("0" if text[0] != "0" else "1") + text[1:]).encode(),
            "other": b"0" * 64 + b" " + b"1" * 64 + b"\n",
            "binary": os.urandom(130),
        }
        entry.write_bytes(damaged[damage])
    assert fingerprint(large) == right
    assert damage == "directory" or entry.read_text() == text


def test_a_cache_that_cannot_be_written_costs_only_time(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fingerprint(large)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert fingerprint(large) == right


def test_a_file_that_cannot_be_read_is_one_line(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, _start: int) -> bytes:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(module, "_of_chunk", fail)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        fingerprint(large)


def test_a_user_without_a_home_is_served_without_a_cache(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    right = fingerprint(large)
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(FileNotFoundError, match="no home"):
        cache_directory()
    assert fingerprint(large) == right
