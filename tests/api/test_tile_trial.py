"""Tiles are used where a trial in another process gave the same bits in less time; else nothing changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.api import tile_trial
from pocketvlm.api.tile_trial import try_tiles
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import CACHE_VARIABLE, processor_flags


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both libraries are compiled once."""
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture
def tiled(compiled_library: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A processor that says it has tiles, which are those of the plain twin; the library of them, not tried yet."""
    if library.kind_of(compiled_library) != "avx512":
        pytest.skip("tiles go with the operators of AVX-512, which this processor has not")
    monkeypatch.setattr(library, "processor_flags", lambda: processor_flags() | library.TILE_FLAGS)
    monkeypatch.setattr(library, "TILES", library.TILES | {"amx": library.TILES["plain"]})
    monkeypatch.delenv(library.TILES_VARIABLE, raising=False)
    monkeypatch.delenv(library.INSTRUCTIONS_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(place))
    library.compiled_with.cache_clear()
    plain, found = library.compiled_with("off"), library.compiled_with("amx")
    assert plain is not None
    assert found is not None
    library.trial_notes(found).unlink(missing_ok=True)
    monkeypatch.setattr(library, "_verdicts", {})
    yield found
    library.compiled_with.cache_clear()


def says(monkeypatch: pytest.MonkeyPatch, *, is_equal: bool = True, plain: float = 2.0, status: int = 0) -> None:
    """The other process."""
    said = json.dumps({"is_equal": is_equal, "seconds": {"views": {"plain": plain, "tiled": 1.0}}})
    done = subprocess.CompletedProcess[str]([], status, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


def test_what_is_faster_and_equal_is_used_from_then_on(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.compiled() == library.compiled_with("off") != tiled
    says(monkeypatch)
    try_tiles()
    assert library.compiled() == tiled
    assert library.kind_of(tiled) == "avx512+amx"
    says(monkeypatch, plain=0.1)
    try_tiles()  # it is not tried again
    assert library.compiled() == tiled
    monkeypatch.setenv(library.TILES_VARIABLE, "off")
    assert library.compiled() == library.compiled_with("off")


@pytest.mark.parametrize(
    ("of_process", "reason"),
    [
        ({"is_equal": False}, "something else"),
        ({"plain": 1.0}, "1.00 of the time"),
        ({"status": -4}, "status -4"),
        ({"is_equal": None, "status": 1}, "status 1"),
    ],
)
def test_otherwise_products_stay_on_vectors(
    tiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    of_process: dict[str, Any],
    reason: str,
) -> None:
    """`status` -4 is that of a process which an unknown instruction ended."""
    says(monkeypatch, **of_process)
    try_tiles()
    assert library.compiled() == library.compiled_with("off")
    assert library.verdict_of(tiled) is False
    (record,) = caplog.records
    assert reason in record.message


@pytest.mark.parametrize("chance", ["late", "slower"])
def test_what_failed_by_chance_is_tried_again_on_another_day(
    tiled: Path, monkeypatch: pytest.MonkeyPatch, chance: str
) -> None:
    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 120)

    with monkeypatch.context() as patch:
        if chance == "late":
            patch.setattr(subprocess, "run", late)
        else:
            says(patch, plain=0.9)
        try_tiles()
    says(monkeypatch)
    try_tiles()
    assert library.compiled() == library.compiled_with("off")
    tomorrow = time.time() + 1.01 * tile_trial.DAY
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    try_tiles()
    assert library.compiled() == tiled


def test_where_nothing_can_be_noted_this_process_uses_it(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    says(monkeypatch)
    try_tiles()
    assert not library.trial_notes(tiled).exists()
    assert library.compiled() == tiled


@pytest.mark.parametrize("named", ["", "avx512"])
def test_a_compiler_without_tiles_is_asked_once(
    tiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, named: str
) -> None:
    """The plain library is used, also where its kind is named."""
    monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, named)
    plain = library.compiled_with("off")
    asked: list[str] = []

    def made(kind: str, _: str, tiles: str) -> Path | None:
        asked.append(f"{kind} {tiles}")
        return plain if tiles == "off" else None

    library.compiled_with.cache_clear()
    monkeypatch.setattr(library, "_made", made)
    for _ in range(2):
        try_tiles()
        assert library.compiled() == plain
    assert asked == ["avx512 off", "avx512 amx"]
    assert library.verdict_of(tiled) is False
    (record,) = caplog.records
    assert "cannot be compiled" in record.message


def test_a_file_of_the_working_directory_is_not_run(
    tiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pocketvlm.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    plain = library.compiled_with("off")
    assert plain is not None
    assert tile_trial._trial_of(plain, tiled)["is_equal"]
    assert not Path("ran").exists()


def test_notes_that_are_damaged_are_made_anew(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.trial_notes(tiled).write_text("{")
    assert library.compiled() == library.compiled_with("off")
    says(monkeypatch)
    try_tiles()
    assert library.compiled() == tiled


def test_the_process_compares_bits_and_times(tiled: Path) -> None:
    """The plain twin of the instructions computes the same, slowly: tiles are not used then."""
    plain = library.compiled_with("off")
    assert plain is not None
    found = tile_trial._trial_of(plain, tiled)
    assert found["is_equal"]
    assert not found["is_better"]
    assert found["seconds"].keys() == {*tile_trial.PRODUCTS, *tile_trial.ATTENTIONS}
    broken = Path(shutil.copy(tiled, tiled.with_name("broken.so")))
    broken.write_bytes(broken.read_bytes()[:5000])
    assert "status" in tile_trial._trial_of(plain, broken)["why"]


def test_without_tiles_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setattr(library, "compiled_with", lambda _: pytest.fail("a library is compiled"))
    try_tiles()
