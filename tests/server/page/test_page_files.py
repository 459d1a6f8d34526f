"""The files of the page as the server gives them: to anybody, under a strict policy, and nothing else."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from helpers.serving import Serving
from starlette.routing import Router

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.server.app import create_app
from pocketvlm.server.page import FOLDER, MEDIA_TYPES, add_page
from pocketvlm.server.settings import ServerSettings

FILES = sorted(FOLDER.iterdir())
PATHS = ["/", *(f"/page/{file.name}" for file in FILES if file.name != "index.html")]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_comes_without_a_key_and_with_a_strict_policy(server: Serving, path: str) -> None:
    status, text, headers = server.ask(path)
    assert status == 200
    assert text == (FOLDER / (path.rpartition("/")[2] or "index.html")).read_text(encoding="utf-8")
    assert headers["content-type"].partition(";")[0] in {kind.partition(";")[0] for kind in MEDIA_TYPES.values()}
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "media-src": "blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_a_file_that_a_browser_has_is_not_sent_again(server: Serving) -> None:
    tag = server.ask("/page/app.js")[2]["etag"]
    assert tag != server.ask("/")[2]["etag"]
    for known, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
        found = httpx.get(f"{server.url}/page/app.js", headers={"If-None-Match": known})
        assert (found.status_code, bool(found.content)) == (status, status == 200)
    assert httpx.head(f"{server.url}/page/app.js").headers["etag"] == tag


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py"])
def test_nothing_else_is_served(server: Serving, path: str) -> None:
    assert server.ask(path)[0] == 404


def test_every_file_of_the_folder_is_served_and_none_is_too_long() -> None:
    router = Router()
    add_page(router)
    assert {getattr(route, "path", "") for route in router.routes} == set(PATHS)
    assert not [file.name for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 400]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_another_address_or_makes_html_of_text(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    addresses = set(re.findall(r"""https?://[\w.-]+[^\s"']*|["'(]//[\w-]+\.[^\s"']*""", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    makers = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTML|srcdoc|DOMParser|ContextualFragment"
        r"|\beval\(|new Function|localStorage"
    )
    assert not re.search(makers, text)


def test_the_page_has_no_script_style_or_handler_within_itself() -> None:
    tags = list[tuple[str, dict[str, str | None]]]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    assert len(tags) > 50
    assert not [1 for tag, attributes in tags if tag == "style" or (tag == "script" and "src" not in attributes)]
    assert not [name for _, attributes in tags for name in attributes if name == "style" or name.startswith("on")]


def test_a_server_can_be_without_the_page() -> None:
    vlm = AsyncVLM(pocketvlm.load())
    without, with_page = (
        {
            getattr(route, "path", "")
            for route in create_app(vlm, ServerSettings(page=page)).routes
            if "GET" in (getattr(route, "methods", None) or ())
        }
        for page in (False, True)
    )
    with ThreadPoolExecutor(1) as pool:  # this thread has the browser's event loop
        pool.submit(lambda: asyncio.run(vlm.close())).result()
    assert with_page - without == set(PATHS) - {"/"}  # which tells of the server where there is no page
