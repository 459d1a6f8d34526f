"""Which operators a bundle is made of: the faster ones by what was measured once, unless the environment says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pocketvlm.api import operators
from pocketvlm.api.operators import WORK, choose_operators, describe, faster, measured
from pocketvlm.bundle import PRESETS, Operators, PartOperators, Quantization
from pocketvlm.kernels.onnx_ops import library


def seconds(compiled: float, standard: float) -> dict[Operators, float]:
    return {"compiled": compiled, "standard": standard}


@pytest.fixture
def copied(compiled_library: Path, tmp_path: Path) -> Path:
    """The library where nothing was noted beside it."""
    return Path(shutil.copy(compiled_library, tmp_path))


@pytest.mark.parametrize(
    ("compiled", "standard", "chosen"),
    [(1, 2, "compiled"), (1, 1, "compiled"), (1, 0.95, "compiled"), (2, 1, "standard")],
)
def test_a_page_is_what_decides(compiled: float, standard: float, chosen: Operators) -> None:
    assert faster({name: seconds(compiled, standard) for name in WORK}) == PartOperators.of(chosen)
    of_decoder = [name for name, work in WORK.items() if not work.is_of_tower]
    least = min(of_decoder, key=lambda name: WORK[name].times)
    mixed = {name: seconds(1, 1) | ({"standard": 0.9} if name == least else {}) for name in WORK}
    assert faster(mixed) == PartOperators.of("compiled")  # slower by a little at what is done least


def test_the_tower_is_chosen_apart_from_the_decoder() -> None:
    by_part = {name: seconds(1, 0.5 if work.is_of_tower else 2) for name, work in WORK.items()}
    assert faster(by_part) == PartOperators("standard", "compiled")
    assert faster({name: seconds(*reversed(of.values())) for name, of in by_part.items()}) == PartOperators(
        "compiled", "standard"
    )
    assert faster({}) == PartOperators("compiled", "compiled")


def test_what_was_measured_is_noted_and_taken_from_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(PRESETS["int8"], copied)
    assert list(first) == list(WORK)
    assert all(value > 0 for of in first.values() for value in of.values())
    assert "views" in describe(first)
    (notes,) = copied.parent.glob("*.json")

    def refuse(*_: object) -> None:
        raise AssertionError("it is measured again")

    with monkeypatch.context() as patch:
        patch.setattr(operators, "_measure", refuse)
        assert measured(PRESETS["int8"], copied) == first
        # A head alone is read at each step.
        assert measured(Quantization(head="int8"), copied) == {"steps": first["steps"]}
    notes.write_text(notes.read_text()[:-20])  # cut short
    assert measured(PRESETS["int8"], copied).keys() == first.keys()
    assert set(json.loads(notes.read_text())) == {"views int8", "prompts int8", "steps int8"}


def test_where_nothing_can_be_noted_it_is_measured_all_the_same(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert measured(Quantization(head="int8"), copied).keys() == {"steps"}


def test_the_environment_is_asked_first(compiled_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "compiled", lambda: compiled_library)
    monkeypatch.delenv(library.INSTRUCTIONS_VARIABLE, raising=False)
    slow = {name: seconds(2, 1) for name in WORK}
    monkeypatch.setattr(operators, "measured", lambda *_: slow)
    assert choose_operators(PRESETS["int8"]) == PartOperators.of("standard")
    assert choose_operators(PRESETS["none"]) == PartOperators.of("standard")
    monkeypatch.setenv(library.INSTRUCTIONS_VARIABLE, library.kind_of(compiled_library))
    assert choose_operators(PRESETS["int8"]) == PartOperators.of("compiled")
    assert choose_operators(PRESETS["none"]) == PartOperators.of("standard")
    monkeypatch.setattr(library, "compiled", lambda: None)
    assert choose_operators(PRESETS["int8"]) == PartOperators.of("standard")


def test_a_library_that_cannot_be_loaded_is_a_line_and_standard_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As from a folder from which nothing may be run."""
    (tmp_path / "avx2-none.so").write_text("no library\n")
    monkeypatch.setattr(library, "compiled", lambda: tmp_path / "avx2-none.so")
    monkeypatch.delenv(library.INSTRUCTIONS_VARIABLE, raising=False)
    assert choose_operators(PRESETS["int8"]) == PartOperators.of("standard")
    (record,) = caplog.records
    assert "standard ones are" in record.message
    assert "\n" not in record.message
