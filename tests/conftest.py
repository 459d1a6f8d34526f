"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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


@pytest.fixture(scope="session")
def seeded_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Checkpoint directories with random fp32 weights written by the reference, one for each seed. Only read them."""
    root = tmp_path_factory.mktemp("seeded")

    @cache
    def directory(seed: int) -> Path:
        return write_checkpoint(root / str(seed), seed=seed)

    return directory
