"""The list of `make mutants` is up to date, and its runner tells what tests notice from what they do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mutants.changes import MUTANTS
from mutants.mutant import Mutant
from mutants.runner import faults, run

ROOT = Path(__file__).resolve().parents[1]


def test_every_change_still_has_its_text_and_its_tests() -> None:
    assert len(set(MUTANTS)) == len(MUTANTS) > 40
    assert {mutant: found for mutant in MUTANTS if (found := faults(mutant, ROOT))} == {}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"old": "return"}, "stands 2 times"),
        ({"old": "no such text"}, "stands 0 times"),
        ({"file": "gone.py"}, "stands 0 times in gone.py"),
        ({"new": "a + b"}, "changes nothing"),
        ({"tests": ()}, "names no test"),
        ({"tests": ("test_sums.py::test_gone",)}, "test_gone does not exist"),
        ({"tests": ("test_gone.py",)}, "test_gone.py does not exist"),
    ],
)
def test_an_entry_that_is_out_of_date_says_why(
    change: dict[str, object], fault: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = SUM._replace(**change)
    (found,) = faults(stale, project)
    assert fault in found
    assert run([stale], project, 1) == 1
    assert "0 passed, 1 failed" in capsys.readouterr().out


def test_a_change_is_caught_or_survives_and_the_project_is_left_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    survivor = SUM._replace(old="a - b", new="b - a", tests=("test_sums.py::test_sum",))
    broken = SUM._replace(new="a +")
    assert run([SUM], project, 2) == 0
    assert run([SUM, survivor, broken], project, 2) == 1
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[0] for line in lines if "→" in line]
    assert found == ["caught", "caught", "SURVIVED", "BROKEN"]
    assert any(line.startswith("1 passed, 2 failed") for line in lines)
    assert {path: path.read_bytes() for path in project.rglob("*.py")} == before


def test_tests_that_fail_anyway_catch_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tests" / "test_sums.py").write_text("def test_sum() -> None:\n    assert False\n", encoding="utf-8")
    assert run([SUM._replace(tests=("test_sums.py::test_sum",))], project, 1) == 1
    assert "do not pass without any change" in capsys.readouterr().out


SUM = Mutant("sums.py", "a + b", "a * b", ("test_sums.py",))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package, tests = tmp_path / "src" / "pocketvlm", tmp_path / "tests"
    for folder in (package, tests):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (package / "__init__.py").touch()
    (tests / "conftest.py").write_text(
        "from hypothesis import settings\n\nsettings.register_profile('mutants')\n", encoding="utf-8"
    )
    (package / "sums.py").write_text(
        "def sum_of(a, b):\n    return a + b\n\n\ndef difference(a, b):\n    return a - b\n", encoding="utf-8"
    )
    (tests / "test_sums.py").write_text(
        "from pocketvlm.sums import sum_of\n\n\ndef test_sum() -> None:\n    assert sum_of(2, 3) == 5\n",
        encoding="utf-8",
    )
    return tmp_path
