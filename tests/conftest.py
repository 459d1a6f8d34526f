"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory without weights: tokenizer with merges, template, configurations."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
