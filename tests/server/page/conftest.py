"""One server and one browser for all tests of the page, which may ask its own server and nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import Serving, serving
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import pocketvlm

KEY = "the-secret-key"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOW = "needs a Chromium to drive: `apt-get install chromium`, or Google Chrome"
OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def loading() -> Iterator[Future[pocketvlm.VLM]]:
    """The model, which loads while the server does the same."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(pocketvlm.load)


@pytest.fixture(scope="session")
def server() -> Iterator[Serving]:
    with serving("--api-key", KEY, "--served-model-name", "reader") as started:
        yield started


@pytest.fixture(scope="session")
def model(loading: Future[pocketvlm.VLM]) -> pocketvlm.VLM:
    """What the server has to say the same as."""
    return loading.result()


class Tabs:
    """Opens the page. Whoever wants nothing special gets the same tab, loaded anew: a process of the browser for each
    test would take longer than most tests do.
    """

    def __init__(self, browser: Browser, server: Serving) -> None:
        self.browser, self.address = browser, f"{server.url}/"
        self.asked, self.faults = list[str](), list[str]()
        self.own: Page | None = None
        self.is_taken = False
        self.others: list[BrowserContext] = []

    def open(self, key: str | None = KEY, **options: Any) -> Page:
        """The page in a context with these options; `key` None leaves it without one."""
        if key != KEY or options or self.is_taken:
            page = self._made(key, options)
            self.others.append(page.context)
        else:
            page = self.own = self.own or self._made(key, {})
            self.is_taken = True
        page.goto(self.address)
        if key is not None:
            page.wait_for_selector("html[data-ready]")
        return page

    def end(self) -> None:
        """End a test: nothing of it is left for the next."""
        for context in self.others:
            context.close()
        if self.own is not None:
            self.own.unroute_all()
            self.own.goto("about:blank")  # ends its requests
            self.own.context.clear_permissions()
        self.others.clear()
        self.asked.clear()
        self.faults.clear()
        self.is_taken = False

    def _made(self, key: str | None, options: Mapping[str, Any]) -> Page:
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        context.set_default_timeout(30_000)
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        context.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)
        if key is not None:
            given = f"if (origin.startsWith('http')) sessionStorage.setItem('pocketvlm-key', '{key}')"
            context.add_init_script(given)  # runs in the empty page before as well, which has no storage
        page = context.new_page()
        # Where nobody listens from the beginning, the first dialog that a key opens is the system's, and is not seen.
        page.on("filechooser", lambda _: None)
        return page


class Kept:
    """What is there from the first test of this folder that wants it to the last."""

    tabs: Tabs | None = None
    ends = ExitStack()


@pytest.fixture
def tabs(server: Serving) -> Tabs:
    if Kept.tabs is None:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            pytest.skip(HOW)
        playwright = Kept.ends.enter_context(sync_playwright())
        # Without its sandbox, as tests may run as root; all that it is shown is ours.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        Kept.ends.callback(browser.close)
        Kept.tabs = Tabs(browser, server)
    return Kept.tabs


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """As long as Playwright is there its event loop runs in this thread, and no test elsewhere could have one."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        Kept.tabs = None
        Kept.ends.close()


@pytest.fixture
def browser(tabs: Tabs) -> Browser:
    return tabs.browser


@pytest.fixture
def open_page(tabs: Tabs) -> Iterator[OpenPage]:
    """Opens the page with options of a browser context, see `Tabs.open`.

    In the end nothing was asked of anybody else, no script failed, and the content-security policy had nothing to stop.
    """
    yield tabs.open
    asked, faults = list(tabs.asked), list(tabs.faults)
    tabs.end()
    assert asked
    assert not [url for url in asked if not url.startswith((tabs.address, "blob:", "data:"))]
    # What the server refuses, which some tests want, is in the console as well.
    assert not [fault for fault in faults if not fault.startswith("Failed to load resource")]
