"""One change of one file, with the tests that must fail when it is made."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        file: under src/pocketvlm.
        old: text that stands there exactly once.
        new: what it becomes.
        tests: under tests/, files or single tests (FILE::NAME); at least one must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(file: str, test_file: str, *changes: tuple[str, ...]) -> list[Mutant]:
    """Changes of one file, as (old, new, names of tests); without names all tests of the file are run."""
    return [
        Mutant(file, old, new, tuple(f"{test_file}::{name}" for name in names) or (test_file,))
        for old, new, *names in changes
    ]
