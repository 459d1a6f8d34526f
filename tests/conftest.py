"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.checkpoints import write_checkpoint
from helpers.serving import KEY, SHARED, Serving, serving
from hypothesis import Phase, settings

from pocketvlm.bundle import Operators
from pocketvlm.kernels.onnx_ops import library

# The same examples on every run, and no clock: these tests run on slow shared machines.
settings.register_profile("pocketvlm", deadline=None, derandomize=True)
settings.load_profile("pocketvlm")
# `make mutants` wants to know whether a test fails, not the smallest example.
settings.register_profile(
    "mutants", settings.get_profile("pocketvlm"), phases=(Phase.explicit, Phase.generate), print_blob=False
)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bundles that tests make do not end in the user's cache; processes that tests start inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETVLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def server(_own_cache: None) -> Iterator[Serving]:
    """`pocketvlm serve` for all tests that change nothing of it, with `KEY` and `NAMES` of `helpers.serving`."""
    with serving(*SHARED) as started:
        started.key = KEY
        yield started


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


@pytest.fixture(scope="session")
def compiled_library(_own_cache: None) -> Path:
    """Our operators for ONNX Runtime."""
    found = library.compiled()
    if found is None:
        pytest.skip("needs a C++ compiler, and a processor that library.KINDS knows")
    return found


@pytest.fixture(scope="session", params=["standard", "compiled"])
def operators(request: pytest.FixtureRequest) -> Operators:
    """What quantised bundles are made of."""
    if request.param == "compiled":
        request.getfixturevalue("compiled_library")
    chosen: Operators = request.param
    return chosen
