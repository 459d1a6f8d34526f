"""The version and the commit it is of: what a report of a fault names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pocketvlm

_PACKAGE = Path(pocketvlm.__file__).resolve().parent


def commit() -> str:
    """The commit of the code that runs; empty where nothing says.

    A wheel carries a record (`hatch_build.py` at the top of the repository writes it); of a checkout git is asked.
    """
    record = _PACKAGE / "commit.txt"
    if record.is_file():
        return record.read_text(encoding="utf-8").strip()
    root = _PACKAGE.parents[1]
    if not (root / ".git").exists():  # a repository further up is another project's
        return ""
    command = ("git", "-C", str(root), "describe", "--always", "--long", "--tags", "--dirty", "--abbrev=12")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version_text() -> str:
    """`0.1.0 (v0.1.0-3-g0123456789ab)`, or the version alone."""
    of = commit()
    return f"{pocketvlm.__version__} ({of})" if of else pocketvlm.__version__
