"""One server and one browser for all tests of the page, which may ask its own server and nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers.serving import Serving, serving
from playwright.sync_api import Browser, Page, sync_playwright

import pocketvlm

KEY = "the-secret-key"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOW = "needs a Chromium to drive: `apt-get install chromium`, or Google Chrome"
OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def server() -> Iterator[Serving]:
    with serving("--api-key", KEY, "--served-model-name", "reader") as started:
        yield started


@pytest.fixture(scope="session")
def model() -> pocketvlm.VLM:
    """What the server has to say the same as."""
    return pocketvlm.load()


# Of a module: as long as Playwright is there its event loop runs in this thread, and no other test could have one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(HOW)
    with sync_playwright() as playwright:
        # Without its sandbox, as tests may run as root; all that it is shown is ours.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, server: Serving) -> Iterator[OpenPage]:
    """Opens the page with options of a browser context; `key` None leaves it without one.

    In the end nothing was asked of anybody else, no script failed, and the content-security policy had nothing to stop.
    """
    contexts, asked, faults = [], list[str](), list[str]()

    def open_page(key: str | None = KEY, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        context.set_default_timeout(30_000)
        context.on("request", lambda request: asked.append(request.url))
        context.on("weberror", lambda error: faults.append(str(error.error)))
        context.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        if key is not None:
            given = f"if (origin.startsWith('http')) sessionStorage.setItem('pocketvlm-key', '{key}')"
            context.add_init_script(given)  # runs in the empty page before as well, which has no storage
        page = context.new_page()
        # Where nobody listens from the beginning, the first dialog that a key opens is the system's, and is not seen.
        page.on("filechooser", lambda _: None)
        page.goto(f"{server.url}/")
        if key is not None:
            page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert not [url for url in asked if not url.startswith((f"{server.url}/", "blob:", "data:"))]
    # What the server refuses, which some tests want, is in the console as well.
    assert not [fault for fault in faults if not fault.startswith("Failed to load resource")]
