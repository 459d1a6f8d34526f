"""A model's directory: read once for a command, and the same whatever names it."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.api.vlm import load
from pocketvlm.bundle import PRESETS
from pocketvlm.cli import main
from pocketvlm.config_files import ConfigFiles
from pocketvlm.errors import CheckpointError, ConfigError
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.fingerprint import fingerprint
from pocketvlm.model.hub import resolve

_counting: list[Counter[Path]] = []


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counting and isinstance(arguments[0], str):
        _counting[-1][Path(arguments[0])] += 1


@pytest.fixture
def directory(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded_checkpoint(0), tmp_path / "model"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((64, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def opened(directory: Path, picture: Path) -> Iterator[Counter[Path]]:
    """How often each file is opened, from when the others have been written."""
    assert directory.is_dir()
    assert picture.is_file()
    if not hasattr(sys, "_pocketvlm_counts_files"):  # a hook cannot be taken away again
        sys.addaudithook(_count)
        sys._pocketvlm_counts_files = True
    _counting.append(Counter())
    yield _counting[-1]
    _counting.pop()


def assert_read_once(opened: Counter[Path], directory: Path) -> None:
    configurations = {path: count for path, count in opened.items() if path.parent == directory and "json" in path.name}
    assert directory / "config.json" in configurations
    assert {path.name: count for path, count in configurations.items() if count > 1} == {}


def test_loading_reads_each_configuration_once(opened: Counter[Path], directory: Path) -> None:
    load(directory, runtime="torch").close()
    assert_read_once(opened, directory)


def test_a_command_reads_each_configuration_once(opened: Counter[Path], directory: Path, picture: Path) -> None:
    arguments = ["ask", str(picture), "?", "--model", str(directory), "--runtime", "torch", "--max-tokens", "1"]
    assert main(arguments) == 0
    assert_read_once(opened, directory)


def test_a_bundle_is_a_kind_of_its_own_and_read_once(opened: Counter[Path], directory: Path, tmp_path: Path) -> None:
    write_bundle(directory, tmp_path / "bundle", PRESETS["none"])
    assert (resolve(directory).kind, resolve(tmp_path / "bundle").kind) == ("checkpoint", "bundle")
    opened.clear()
    load(tmp_path / "bundle").close()
    opened.pop(tmp_path / "bundle" / "bundle.json")  # once to choose, once to run
    assert_read_once(opened, tmp_path / "bundle")


def test_a_directory_is_handed_down_as_it_is(directory: Path) -> None:
    found = resolve(str(directory))
    assert resolve(found) is found
    assert (found.path, found.name, str(found)) == (directory, str(directory), str(directory))
    assert Path(found) == directory
    assert found.configs == ConfigFiles.read(directory)
    assert resolve("nano").name == "nano"
    with pytest.raises(FrozenInstanceError):
        found.kind = "bundle"  # type: ignore[misc]


def test_the_fingerprint_is_computed_when_it_is_asked_for_and_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(
        "pocketvlm.model.directory.fingerprint", lambda path: (asked.append(path), fingerprint(path))[1]
    )
    found = resolve(directory)
    assert asked == []
    assert found.fingerprint == found.fingerprint == fingerprint(directory)
    assert asked == [directory]


def test_what_is_missing_is_named_before_anything_is_loaded(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        ModelDirectory.read(tmp_path / "nowhere")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        resolve(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        resolve(directory)
