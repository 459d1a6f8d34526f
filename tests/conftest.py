"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from hypothesis import settings

# The same examples on every run, and no clock: these tests run on slow shared machines.
settings.register_profile("pocketvlm", deadline=None, derandomize=True)
settings.load_profile("pocketvlm")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory without weights: tokenizer with merges, template, configurations."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
