"""One `pocketvlm serve` for all the clients of this folder: each test is a use, done by a client that people have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.serving import Serving, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Serving]:
    with serving("--api-key", "secret", "--served-model-name", "reader", "--served-model-name", "gpt-4o") as started:
        yield started
