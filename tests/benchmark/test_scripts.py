"""Every benchmark finds what it imports: what is renamed in the package is renamed there, too."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(Path("benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_of_the_package_is_there(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    # What stands behind `except` is for checkouts of before.
    older = {inner for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) for inner in ast.walk(node)}
    for node in set(ast.walk(tree)) - older:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pocketvlm"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
