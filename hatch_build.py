"""What every build records: the commit, for `pocketvlm --version` and reports of faults.

A wheel carries it as `pocketvlm/commit.txt`, an sdist as `commit.txt` beside this file, from which a wheel made of that
sdist takes it. Where neither git nor such a file says anything, nothing is recorded, and the build goes on.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RECORD = "commit.txt"
DESCRIBE = ("git", "describe", "--always", "--long", "--tags", "--dirty", "--abbrev=12")


def commit_of(root: Path) -> str:
    """The commit of the tree at `root`, an sdist's or a checkout's, as `git describe` puts it; empty where unknown."""
    record = root / RECORD
    if record.is_file():
        return record.read_text(encoding="utf-8").strip()
    if not (root / ".git").exists():  # a file in a worktree; a repository further up would be another project's
        return ""
    try:
        return subprocess.run(DESCRIBE, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout that it does not trust
        return ""


class CustomBuildHook(BuildHookInterface):
    """Adds the record of the commit to what is built; an editable install asks git each time instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable" or not (commit := commit_of(root)):
            return
        self._folder = tempfile.TemporaryDirectory()
        record = Path(self._folder.name) / RECORD
        record.write_text(f"{commit}\n", encoding="utf-8", newline="\n")
        build_data["force_include"][str(record)] = f"pocketvlm/{RECORD}" if self.target_name == "wheel" else RECORD

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if hasattr(self, "_folder"):
            self._folder.cleanup()
