"""Make each change in a copy of the package and run its tests, which must fail: `make mutants`, minutes.

The working tree is never written to. Exit status 1 where tests notice nothing, or where the list is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mutants.changes import MUTANTS
from mutants.runner import run

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description="Do the tests notice one-line faults?")
    parser.add_argument("part", nargs="?", default="", help="only the files whose path has this in it")
    parser.add_argument("--jobs", type=int, default=2, help="changes that are tried at the same time")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.part in mutant.file]
    return run(chosen, ROOT, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
