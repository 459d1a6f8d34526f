"""The library of compiled operators: made once, whole or not at all, and nothing is lost where it cannot be made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from pocketvlm.api import operators
from pocketvlm.api.loading import ready_bundle
from pocketvlm.api.vlm import load
from pocketvlm.bundle import PRESETS, Manifest, PartOperators
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.errors import ConfigError
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import CACHE_VARIABLE
from pocketvlm.model.hub import resolve

WORD = Path(__file__).parents[2] / "examples/word.png"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and a processor that has what is needed."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(library, "processor_flags", lambda: library.KINDS["avx512"].needs)
    monkeypatch.delenv(library.INSTRUCTIONS_VARIABLE, raising=False)
    compiled = library.compiled_with
    compiled.cache_clear()
    yield tmp_path / "operators"
    compiled.cache_clear()


def compiler(folder: Path, script: str) -> str:
    """A program that a C++ compiler is taken for."""
    program = folder / "c++"
    program.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{script}\n")
    program.chmod(0o755)
    return str(program)


LAST = 'for out; do :; done; echo library > "$out"'  # the output is the last argument


def test_it_is_compiled_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, LAST))
    first = library.compiled()
    assert first is not None
    assert first.read_text() == "library\n"
    library.compiled_with.cache_clear()  # as another process
    assert library.compiled() == first
    assert (tmp_path / "runs").read_text() == "run\n"
    assert list(place.iterdir()) == [first]


@pytest.mark.usefixtures("place")
def test_another_source_or_processor_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, LAST))
    found = {library.compiled()}
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "operators.cpp").write_text("// other")
    monkeypatch.setattr(library, "SOURCES", sources)
    library.compiled_with.cache_clear()
    found.add(library.compiled())
    monkeypatch.setattr(library, "processor_flags", lambda: library.KINDS["avx512"].needs | {"new"})
    library.compiled_with.cache_clear()
    found.add(library.compiled())
    assert len(found) == 3
    assert None not in found


@pytest.mark.parametrize("script", ["echo 'error: no such instruction' >&2; exit 1", "kill -9 $$", "exit 0"])
def test_a_compiler_that_fails_leaves_nothing_but_a_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    assert library.compiled() is None
    assert list(place.iterdir()) == []
    (record,) = caplog.records
    assert "operators of avx512 were not compiled" in record.message
    assert "\n" not in record.message


@pytest.mark.usefixtures("place")
def test_without_a_compiler_or_the_instructions_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    assert library.compiled() is None
    monkeypatch.undo()
    monkeypatch.setenv("CXX", compiler(tmp_path, LAST))
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset({"avx2"}))
    library.compiled_with.cache_clear()
    assert library.compiled() is None


def test_two_that_compile_at_once_do_not_meet(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, f"sleep 0.2; {LAST}"))
    one = partial(library.compiled_with.__wrapped__, "off")
    with ThreadPoolExecutor() as pool:
        first, second = pool.submit(one), pool.submit(one)
        assert first.result() == second.result() is not None
    assert list(place.iterdir()) == [first.result()]


@pytest.mark.usefixtures("place")
def test_tiles_are_another_library_and_what_cannot_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, LAST))
    assert library.compiled("off") == library.compiled()
    assert library.compiled("plain") != library.compiled()
    for wanted, reason in (("on", "auto, off, amx, plain"), ("amx", "no AMX")):
        monkeypatch.setenv(library.TILES_VARIABLE, wanted)
        library.compiled_with.cache_clear()
        with pytest.raises(ConfigError, match=reason):
            library.compiled()


@pytest.mark.usefixtures("place")
def test_the_best_kind_is_taken_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'for out; do :; done; echo "$@" > "$out"'))
    flags = frozenset[str]().union(*(kind.needs for kind in library.KINDS.values()))
    found: dict[str, Path | None] = {}
    for has, wanted, kind in (
        (flags, "", "avx512"),
        (flags, "auto", "avx512"),
        (flags, "avx2", "avx2"),
        (flags, "neon", "neon"),
        (flags, "standard", None),
        (frozenset({"avx2", "fma", "avx_vnni"}), "", "avx_vnni"),
        (frozenset({"avx2", "fma"}), "", "avx2"),
        (frozenset({"avx2"}), "", None),
        (frozenset({"asimddp"}), "", "neon"),
    ):
        monkeypatch.setattr(library, "processor_flags", lambda has=has: has)
        monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, wanted)
        library.compiled_with.cache_clear()
        made = library.compiled()
        assert (None if made is None else library.kind_of(made)) == kind
        if kind is not None and made is not None:
            found[kind] = made
            assert all(flag in made.read_text().split() for flag in library.KINDS[kind].flags)
    assert len(set(found.values())) == 4


@pytest.mark.usefixtures("place")
def test_where_the_best_kind_cannot_be_compiled_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a compiler that is older than the processor."""
    monkeypatch.setenv("CXX", compiler(tmp_path, f'case "$*" in *-mavxvnni*) echo no >&2; exit 1;; esac; {LAST}'))
    monkeypatch.setattr(library, "processor_flags", lambda: library.KINDS["avx_vnni"].needs)
    made = library.compiled()
    assert made is not None
    assert library.kind_of(made) == "avx2"
    assert [record.message for record in caplog.records] == ["operators of avx_vnni were not compiled: no"]
    monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, "avx_vnni")
    library.compiled_with.cache_clear()
    with pytest.raises(ConfigError, match="avx_vnni: these operators cannot be compiled here"):
        library.compiled()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("wanted", "reason"), [("avx3", "avx3 is unknown. Use one of auto, standard, avx512"), ("neon", "no asimddp")]
)
def test_a_kind_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str, reason: str) -> None:
    monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, wanted)
    with pytest.raises(ConfigError, match=reason):
        library.compiled()


@pytest.mark.usefixtures("place")
def test_tiles_go_with_the_kind_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "processor_flags", lambda: library.KINDS["avx2"].needs)
    monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, "avx2")
    monkeypatch.setenv(library.TILES_VARIABLE, "plain")
    for tiles in (None, "plain"):
        with pytest.raises(ConfigError, match="avx512 only"):
            library.compiled(tiles)


@pytest.mark.usefixtures("place")
def test_bundles_are_made_of_what_this_machine_has(monkeypatch: pytest.MonkeyPatch, compiled_library: Path) -> None:
    monkeypatch.setattr(operators, "measured", lambda *_: {})  # whichever is faster here
    made = {}
    for found in (None, compiled_library):
        monkeypatch.setattr(library, "compiled", lambda found=found: found)
        for quantization in ("int8", "none"):
            made[found, quantization] = ready_bundle(resolve("nano"), quantization)
    assert len(set(made.values())) == 3  # fp32 has no operators of ours
    kinds = {key: Manifest.read(directory).operators for key, directory in made.items()}
    assert [key for key, kind in kinds.items() if kind.has_compiled] == [(compiled_library, "int8")]
    assert "compiled operators" in ONNXRunner(made[compiled_library, "int8"], threads=1).describe()


def test_tower_and_decoder_may_be_of_different_operators(tmp_path: Path, compiled_library: Path) -> None:
    assert compiled_library
    made = PartOperators("standard", "compiled")
    write_bundle(resolve("nano"), tmp_path / "bundle", PRESETS["int8"], operators=made)
    runner = ONNXRunner(tmp_path / "bundle", threads=1)
    assert runner.manifest.operators == made
    assert "standard operators for vision and compiled operators for the decoder" in runner.describe()
    answers = {str(where): load(where).ask(WORD, "What is written?").text for where in ("nano", tmp_path / "bundle")}
    assert len(set(answers.values())) == 1
    graphs = {name: (tmp_path / f"bundle/{name}.onnx").read_bytes() for name in ("vision", "decoder")}
    assert b"QuantizedLinear" not in graphs["vision"]
    assert b"QuantizedLinear" in graphs["decoder"]


def test_a_compiled_bundle_elsewhere_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(resolve("nano"), tmp_path / "bundle", PRESETS["int8"], operators="compiled")
    monkeypatch.setattr(library, "compiled", lambda: None)
    monkeypatch.delenv(library.INSTRUCTIONS_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="needs compiled operators") as caught:
        ONNXRunner(tmp_path / "bundle")
    assert "--operators standard" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("In file included from a.h:4,\n  from b.h:1:\nc.h:8:2: error: #error needs AVX2\n", "c.h:8:2: error: #error"),
        ("/tmp/x.s: Assembler messages:\n/tmp/x.s:9: Error: no such instruction\n", "/tmp/x.s:9: Error: no such"),
        ("killed\nby the system\n", "by the system"),
        (" \n", "returned non-zero exit status 1"),
    ],
)
def test_what_a_compiler_says_is_told(said: str, line: str) -> None:
    error = subprocess.CalledProcessError(1, ["c++"], stderr=said)
    assert line in library._reason(error)


def test_a_library_that_cannot_be_loaded_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bundle that was made elsewhere, or of one that is named."""
    bundle = tmp_path / "bundle"
    write_bundle(resolve("nano"), bundle, PRESETS["int8"], operators="compiled")
    broken = tmp_path / "avx2-none.so"
    broken.write_text("no library\n")
    monkeypatch.setattr(library, "compiled", lambda: broken)
    with pytest.raises(ConfigError, match=CACHE_VARIABLE):
        ONNXRunner(bundle)
    monkeypatch.setattr(library, "compiled", lambda: None)
    monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, library.STANDARD)
    with pytest.raises(ConfigError, match=r"POCKETVLM_INSTRUCTIONS is standard\. Unset it"):
        ONNXRunner(bundle)
