"""Bundles: whole or not there at all, made once for a checkpoint, and never run when something is wrong with them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

import pocketvlm.engine.runners.onnx_runner as onnx_runner
from pocketvlm.bundle import FORMAT, MANIFEST, PRESETS, Manifest, Quantization, is_bundle, parse_quantization
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.errors import CheckpointError, ConfigError, MissingExtraError, OutputError
from pocketvlm.export.bundle_cache import cached_bundle
from pocketvlm.export.onnx import bundle
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.machine import CACHE_VARIABLE
from pocketvlm.model.fingerprint import fingerprint

INT8 = PRESETS["int8"]


@pytest.fixture(scope="module")
def whole(seeded_checkpoint: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "int8"
    write_bundle(seeded_checkpoint(0), out, INT8)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


def test_a_bundle_lists_its_files_and_is_a_model_directory(whole: Path, seeded_checkpoint: Callable) -> None:
    manifest = Manifest.read(whole)
    assert manifest.quantization == INT8
    assert manifest.source == fingerprint(seeded_checkpoint(0))
    assert manifest.files == {f.name: f.stat().st_size for f in whole.iterdir() if f.name != MANIFEST}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "vision.onnx", "decoder.data"} <= set(
        manifest.files
    )
    assert "model.safetensors" not in manifest.files
    assert is_bundle(whole)
    assert not is_bundle(seeded_checkpoint(0))


@pytest.mark.parametrize("name", ["decoder.data", "vision.onnx", "config.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_bundle_is_refused_in_one_line(copy: Path, name: str, damage: str) -> None:
    if damage == "truncate":
        os.truncate(copy / name, (copy / name).stat().st_size // 2)
    else:
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name) as caught:
        ONNXRunner(copy)
    assert "\n" not in str(caught.value)


def test_a_graph_that_onnx_runtime_cannot_read_is_refused_in_one_line(copy: Path) -> None:
    path = copy / "vision.onnx"
    path.write_bytes(os.urandom(path.stat().st_size))
    with pytest.raises(CheckpointError, match="cannot load") as caught:
        ONNXRunner(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": FORMAT + 1}, "format"),
        ({"files": None}, "damaged"),
        ({"quantization": {"vision": "int3"}}, "damaged"),
    ],
)
def test_a_manifest_of_another_version_or_damaged_is_refused(copy: Path, change: dict, match: str) -> None:
    path = copy / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=match):
        Manifest.read(copy)


def test_an_old_onnx_runtime_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.22.1"))
    with pytest.raises(ConfigError, match=r"1\.22\.1 is installed, 1\.32 or newer"):
        ONNXRunner(whole)


def test_a_missing_onnx_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pocketvlm\[onnx\]"):
        onnx_runner.import_onnxruntime()


def test_nothing_is_written_over(tmp_path: Path, seeded_checkpoint: Callable) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="there already"):
        write_bundle(seeded_checkpoint(0), tmp_path / "out", INT8)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, seeded_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="GB free"):
        write_bundle(seeded_checkpoint(0), tmp_path / "out", INT8)
    assert not list(tmp_path.iterdir())


def test_an_error_while_writing_leaves_nothing_behind(
    tmp_path: Path, seeded_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_write_graphs", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(seeded_checkpoint(0), tmp_path / "out", INT8)
    assert not list(tmp_path.iterdir())


def test_progress_only_grows_and_ends_at_the_end(tmp_path: Path, seeded_checkpoint: Callable) -> None:
    seen: list[tuple[int, int]] = []
    write_bundle(seeded_checkpoint(0), tmp_path / "out", INT8, lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (1000, 1000)


def test_the_cache_makes_a_bundle_once(cache: Path, seeded_checkpoint: Callable) -> None:
    first = cached_bundle(seeded_checkpoint(0), INT8)
    before = (first / MANIFEST).stat().st_mtime_ns
    assert cached_bundle(seeded_checkpoint(0), INT8) == first
    assert (first / MANIFEST).stat().st_mtime_ns == before
    assert cached_bundle(seeded_checkpoint(0), Quantization()) != first
    assert first.parent == cache


def test_the_cache_mends_itself(cache: Path, seeded_checkpoint: Callable) -> None:
    first = cached_bundle(seeded_checkpoint(0), INT8)
    os.truncate(first / "decoder.data", 10)
    killed = cache / f"{first.name}.partial-abc"  # of a process that was killed while it wrote
    killed.mkdir()
    (killed / "decoder.data").write_bytes(b"half")
    assert cached_bundle(seeded_checkpoint(0), INT8) == first
    assert Manifest.read(first).files["decoder.data"] == (first / "decoder.data").stat().st_size > 10
    assert not killed.exists()


def test_bundles_that_were_not_used_for_long_are_removed(cache: Path, seeded_checkpoint: Callable) -> None:
    first, second = cached_bundle(seeded_checkpoint(0), INT8), cached_bundle(seeded_checkpoint(1), INT8)
    for place in (first, second):
        os.utime(place, times=(0, 0))
    assert cached_bundle(seeded_checkpoint(0), INT8) == first  # which is in use again
    third = cached_bundle(seeded_checkpoint(0), Quantization())
    assert {place for place in cache.iterdir() if place.is_dir()} == {first, third}


def test_a_bundle_in_a_cache_of_somebody_else_is_used_as_it_is(
    cache: Path, seeded_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_bundle(seeded_checkpoint(0), INT8)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("os.utime", "pathlib.Path.mkdir", "pocketvlm.export.bundle_cache.FileLock"):
        monkeypatch.setattr(name, refused)
    assert cached_bundle(seeded_checkpoint(0), INT8) == first
    assert first.parent == cache


def test_a_changed_checkpoint_gets_another_bundle(cache: Path, seeded_checkpoint: Callable, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "mine"))
    first = cached_bundle(mine, INT8)
    shutil.copyfile(seeded_checkpoint(1) / "model.safetensors", mine / "model.safetensors")
    assert cached_bundle(mine, INT8) != first
    assert cache.is_dir()


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, seeded_checkpoint: Callable, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=CACHE_VARIABLE):
        cached_bundle(seeded_checkpoint(0), INT8)


def test_two_processes_at_once_make_one_whole_bundle(cache: Path, seeded_checkpoint: Callable) -> None:
    code = (
        "import sys; from pathlib import Path; from pocketvlm.bundle import PRESETS;"
        "from pocketvlm.export.bundle_cache import cached_bundle;"
        "print(cached_bundle(Path(sys.argv[1]), PRESETS['int8']))"
    )
    command = [sys.executable, "-c", code, str(seeded_checkpoint(0))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outs
    (place,) = {out.strip() for out, _ in outs}
    Manifest.read(Path(place))
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [Path(place).name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Quantization()),
        ("int4", Quantization("int8", "int4", "int4")),
        ("vision=int8", Quantization("int8", "fp32", "fp32")),
        ("decoder=int4,head=int8", Quantization("fp32", "int4", "int8")),
    ],
)
def test_quantizations_have_names_and_parts(text: str, expected: Quantization) -> None:
    assert parse_quantization(text) == expected


@pytest.mark.parametrize("text", ["", "int3", "vision", "vision=int2", "tower=int8", "vision=int8,"])
def test_unknown_quantizations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_quantization(text)


@pytest.mark.usefixtures("cache")
def test_a_whole_bundle_is_found_where_nothing_can_be_written(
    seeded_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By modes it could be written by root, as whom tests may run."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    first = cached_bundle(seeded_checkpoint(0), INT8)
    monkeypatch.setattr("pocketvlm.export.bundle_cache.FileLock", refused)
    assert cached_bundle(seeded_checkpoint(0), INT8) == first
    with pytest.raises(CheckpointError, match="Read-only"):
        cached_bundle(seeded_checkpoint(0), Quantization())


def test_what_nobody_loads_and_what_killed_processes_left_goes(cache: Path, seeded_checkpoint: Callable) -> None:
    first = cached_bundle(seeded_checkpoint(0), INT8)
    names = {name: f"{'0' * 8}-int8-f{number}{rest}" for name, number, rest in (
        ("old format", 3, ""), ("unused", FORMAT, ""), ("used", FORMAT + 1, ""), ("held", FORMAT - 1, ""),
        ("half made", FORMAT, ".partial-ab12"), ("half removed", 2, ".partial-unused"), ("being made", 4, ".partial-x"),
    )}  # fmt: skip
    for name, folder in names.items():
        (cache / folder).mkdir(parents=True)
        (cache / folder / "decoder.onnx").touch()
        if name != "used":
            os.utime(cache / folder, (0, 0))
    with FileLock(cache / f"{names['held']}.lock"), FileLock(cache / f"{'0' * 8}-int8-f4.lock"):
        cached_bundle(seeded_checkpoint(1), INT8)
    assert {name for name, folder in names.items() if (cache / folder).exists()} == {"used", "held", "being made"}
    assert first.is_dir()


def test_bundles_of_older_formats_go(cache: Path, seeded_checkpoint: Callable) -> None:
    first = cached_bundle(seeded_checkpoint(0), INT8)
    other = cached_bundle(seeded_checkpoint(1), INT8)
    old = first.with_name(first.name.replace(f"-f{FORMAT}", "-f3"))
    newer = first.with_name(first.name.replace(f"-f{FORMAT}", f"-f{FORMAT + 1}"))
    others = other.with_name(other.name.replace(f"-f{FORMAT}", "-f3"))
    for place in (old, newer, others):
        shutil.copytree(first, place)
        place.with_name(f"{place.name}.lock").touch()
    cached_bundle(seeded_checkpoint(0), Quantization())
    assert not old.exists()
    assert not old.with_name(f"{old.name}.lock").exists()
    assert all(place.is_dir() for place in (first, other, newer, others))
    assert first.parent == cache
