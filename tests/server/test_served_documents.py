"""Documents in requests: pages of data: and file: URLs are pictures, within the limits of a request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.app import App, data_url, error_of, new_vlm, png, run
from helpers.documents import BLUE, GREEN, RED, coloured, protected

from pocketvlm.processing.media_workers import fetching_first

THREE = coloured(RED, GREEN, BLUE)
KIND = "application/pdf"


async def prompt_tokens(app: App, *urls: str) -> int:
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    response = await app.chat([*content, {"type": "text", "text": "?"}], mm_processor_kwargs={"max_slice_nums": 1})
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens"])


def test_pages_of_a_data_url_are_pictures() -> None:
    async def test() -> None:
        app = App(await new_vlm())
        url = data_url(THREE, KIND)
        one, two, three = [await prompt_tokens(app, f"{url}{choice}") for choice in ("#2", "#page=1&zoom=50", "")]
        assert one == two
        assert three == await prompt_tokens(app, f"{url}#1", f"{url}#2", f"{url}#3") > one
        assert await prompt_tokens(app, f"{url}#1-2", data_url(png())) > one
        plan = await app.client.post("/v1/view_plan", json={"images": [f"{url}#1,3", data_url(png())]})
        assert len(plan.json()["images"]) == 3
        plain = await app.look(f"{url}#1", mm_processor_kwargs={"page_dpi": 30})
        assert plain.status_code == 200
        await app.vlm.close()

    run(test())


def test_pages_of_files_within_the_roots_are_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a#b.pdf").write_bytes(THREE)
    (tmp_path / "out.pdf").write_bytes(THREE)

    async def test() -> None:
        app = App(await new_vlm(), media_roots=(str(tmp_path / "in"),))
        app.vlm.vlm.processor.encode = fetching_first(app.vlm.vlm.processor.encode)
        url = (tmp_path / "in" / "a#b.pdf").as_uri()
        assert await prompt_tokens(app, f"{url}#2") < await prompt_tokens(app, url)
        response = await app.look(f"{url}#4")
        assert response.status_code == 400
        assert "has 3 pages, there is no page 4" in error_of(response)
        for outside in ((tmp_path / "out.pdf").as_uri() + "#2", f"{tmp_path}/in/a#b.pdf#2", "/etc/passwd#1"):
            assert (await app.look(outside)).status_code == 400
        await app.vlm.close()

    run(test())


@pytest.mark.parametrize(
    ("body", "choice", "message"),
    [
        (THREE, "#0", "Pages count from 1"),
        (THREE, "#toc", "names no pages"),
        (THREE, "#4", "there is no page 4"),
        (coloured(*[RED] * 5), "", "has 5 pages, at most 4 pictures and pages"),
        (protected(THREE), "", "is protected by a password"),
        (THREE[:99], "", "is damaged or cut off"),
    ],
)
def test_what_cannot_be_read_is_a_400_of_one_line(body: bytes, choice: str, message: str) -> None:
    async def test() -> None:
        app = App(await new_vlm(), max_images=4)
        response = await app.look(data_url(body, KIND) + choice)
        assert (response.status_code, message in error_of(response)) == (400, True), response.text
        assert "\n" not in error_of(response)
        assert json.loads(response.text)["error"]["type"]
        await app.vlm.close()

    run(test())


@pytest.mark.parametrize("behind", ["gh-dark-mode-only", "1"])
def test_what_stands_behind_the_address_of_a_picture_need_not_be_pages(
    monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    """Where it is fetched first, as servers do, and what is decoded are bytes."""
    monkeypatch.setattr("pocketvlm.processing.media_workers.fetch", lambda _url, _limits, _hold: png(60, 40))

    async def test() -> list[int]:
        app = App(await new_vlm())
        app.vlm.vlm.processor.encode = fetching_first(app.vlm.vlm.processor.encode)
        url = f"https://example.org/logo.png#{behind}"
        asked = [("/v1/pages", {"document": url}), ("/v1/view_plan", {"images": [url]})]
        found = [(await app.look(url)).status_code]
        found += [(await app.client.post(path, json=body)).status_code for path, body in asked]
        await app.vlm.close()
        return found

    assert run(test()) == [200, 200, 200]


def test_an_address_is_fetched_once_for_all_of_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(url: str, _limits: object, _hold: object) -> bytes:
        asked.append(url)
        return THREE

    monkeypatch.setattr("pocketvlm.processing.media_workers.fetch", fetch)

    async def test() -> None:
        app = App(await new_vlm())
        app.vlm.vlm.processor.encode = fetching_first(app.vlm.vlm.processor.encode)
        url = "https://example.org/a.pdf?key=1"
        apart = await prompt_tokens(app, f"{url}#1", f"{url}#page=2", f"{url}#3")
        assert asked == [url]
        assert await prompt_tokens(app, url) == apart
        await app.vlm.close()

    run(test())
