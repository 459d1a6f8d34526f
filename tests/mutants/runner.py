"""Mutants in, a line for each out: caught by its tests, or not."""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mutants.mutant import Mutant

PACKAGE = Path("src", "pocketvlm")
COPIED = ("src", "tests", "examples", "pyproject.toml")
SECONDS = 300  # for the tests of one change; those in the list take less than a tenth of it on a quiet machine
PASSED, FAILED = 0, 1  # what pytest ends with; anything else means that tests did not run


def faults(mutant: Mutant, root: Path) -> list[str]:
    """What is out of date in an entry of the list."""
    found = []
    file = root / PACKAGE / mutant.file
    count = file.read_text(encoding="utf-8").count(mutant.old) if file.is_file() else 0
    if count != 1:
        found.append(f"its text stands {count} times in {mutant.file}")
    if mutant.old == mutant.new:
        found.append("it changes nothing")
    if not mutant.tests:
        found.append("it names no test")
    for test in mutant.tests:
        name, _, function = test.partition("::")
        path = root / "tests" / name
        if not path.is_file() or (function and f"def {function}(" not in path.read_text(encoding="utf-8")):
            found.append(f"{test} does not exist")
    return found


def run(mutants: Sequence[Mutant], root: Path, jobs: int) -> int:
    """Try all of them; returns the exit status."""
    began = time.monotonic()
    stale = {mutant: found for mutant in mutants if (found := faults(mutant, root))}
    fresh = [mutant for mutant in mutants if mutant not in stale]
    for mutant, found in stale.items():
        print(f"STALE     {_line(mutant)}: {'; '.join(found)}")
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(max(jobs, 1)) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(max(jobs, 1)):
            trees.put(_copy(root, Path(scratch, str(number))))

        def try_out(mutant: Mutant | None, tests: Sequence[str]) -> tuple[int | None, str]:
            tree = trees.get()
            try:
                with _changed(tree, mutant):
                    return _pytest(tree, tests)
            finally:
                trees.put(tree)

        # Tests that fail anyway would catch everything.
        groups = [group for group in _split([test for mutant in fresh for test in mutant.tests], jobs) if group]
        for status, output in pool.map(lambda group: try_out(None, group), groups):
            if status != PASSED:
                print(output)
                print("These tests do not pass without any change.")
                return 1
        survived = 0
        for mutant, (status, output) in zip(
            fresh, pool.map(lambda mutant: try_out(mutant, mutant.tests), fresh), strict=True
        ):
            words = {PASSED: "SURVIVED", FAILED: "caught", None: "NO END"}
            print(f"{words.get(status, 'BROKEN'):<9} {_line(mutant)}", flush=True)
            if status not in words:
                print(output)
            survived += status != FAILED
    failed = survived + len(stale)
    print(f"{len(mutants) - failed} passed, {failed} failed in {time.monotonic() - began:.0f} s")
    return int(failed > 0)


def _line(mutant: Mutant) -> str:
    return f"{mutant.file}: {mutant.old.strip()} → {mutant.new.strip() or '(nothing)'}"


def _split(tests: Iterable[str], jobs: int) -> list[list[str]]:
    """Each test once, those of a file together: what its tests have in common is made once."""
    named = sorted(set(tests))
    whole = {test for test in named if "::" not in test}
    files = sorted({test.partition("::")[0] for test in named})
    parts = [[file] if file in whole else [t for t in named if t.startswith(f"{file}::")] for file in files]
    return [list(itertools.chain(*parts[number::jobs])) for number in range(jobs)]


def _copy(root: Path, tree: Path) -> Path:
    """What the tests need of the project, without compiled files: those of a change could be taken for the original."""
    tree.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, tree / name)
    return tree


@contextmanager
def _changed(tree: Path, mutant: Mutant | None) -> Iterator[None]:
    if mutant is None:
        yield
        return
    file = tree / PACKAGE / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(text, encoding="utf-8")


def _pytest(tree: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """Exit status, None where it took too long, and output."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(tree / "src")
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=mutants",
    ]
    command += [str(Path("tests", test)) for test in tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr
