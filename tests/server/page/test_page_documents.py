"""PDF, TIFF and HEIC on the page: the server draws pages, a person chooses some, and the chat gets the document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from conftest import KEY, OpenPage
from helpers.documents import BLUE, GREEN, RED, coloured, heic, protected
from helpers.page import EXAMPLES, answer_of, ask
from helpers.pictures import encoded
from PIL import Image
from playwright.sync_api import Page, Route, expect

import pocketvlm

QUESTION = "What is the word?"


def word_and_number(format: str) -> bytes:
    """A document of two pages, the second of which shows a word."""
    word, number = (Image.open(EXAMPLES / name).convert("RGB") for name in ("word.png", "number.png"))
    return encoded(number, format, save_all=True, append_images=[word])


def give(page: Page, name: str, body: bytes, kind: str = "") -> None:
    page.set_input_files("#files", {"name": name, "mimeType": kind, "buffer": body})


def sent(page: Page) -> list[Any]:
    """The content of the next question."""
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, QUESTION)
    content: list[Any] = asked.value.post_data_json["messages"][-1]["content"]
    return content


def test_pages_of_a_pdf_are_chosen_with_the_keyboard(open_page: OpenPage, model: pocketvlm.VLM, tmp_path: Path) -> None:
    page, path = open_page(reduced_motion="reduce"), tmp_path / "two.pdf"
    path.write_bytes(word_and_number("PDF"))
    page.set_input_files("#files", path)
    expect(page.locator("#pages-dialog")).to_be_visible()
    expect(page.locator("#pages-title")).to_have_text("Pages of two.pdf")
    expect(page.locator("#pages-list input:checked")).to_have_count(2)
    expect(page.locator("#pages-note")).to_have_text("2 pages are chosen of 2.")
    assert Axe().run(page).response["violations"] == []
    shown = page.locator("#pages-list img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert min(shown) > 50
    expect(page.locator("#pages-list input").first).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#pages-note")).to_have_text("1 page is chosen of 2.")
    page.keyboard.press("Enter")
    page.locator("#tray li").wait_for()
    expect(page.locator("#pages-dialog")).to_be_hidden()
    expect(page.locator("#summary")).to_contain_text("two.pdf, page 2: ")
    assert page.locator("#picture").evaluate("one => one.naturalWidth") > 100
    document, text = sent(page)
    assert text == {"type": "text", "text": QUESTION}
    assert document["image_url"]["url"].startswith("data:application/pdf;base64,")
    assert document["image_url"]["url"].endswith("#2")
    turn = page.locator("#turns > li").last
    assert answer_of(turn) == model.ask(f"{path}#2", QUESTION).text
    for title in ("Python", "curl"):
        turn.get_by_role("button", name=f"Copy as {title}").click()
        page.locator("#code-note").wait_for()
        code = page.input_value("#code")
        page.keyboard.press("Escape")
        command = [sys.executable, "-c", code] if title == "Python" else ["sh", "-c", code]
        env = {**os.environ, "OPENAI_API_KEY": KEY}
        made = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
        said = made if title == "Python" else json.loads(made)["choices"][0]["message"]["content"]
        assert said.strip() == answer_of(turn)


def test_several_pages_are_sent_as_one_document(open_page: OpenPage) -> None:
    page = open_page()
    give(page, "scan.tif", word_and_number("TIFF"))
    page.click("#pages-add")
    expect(page.locator("#tray li")).to_have_count(2)
    page.set_input_files("#files", EXAMPLES / "receipt.png")
    expect(page.locator("#tray li")).to_have_count(3)
    first, second, _ = sent(page)
    assert first["image_url"]["url"].endswith("#1,2")
    assert second["image_url"]["url"].startswith("data:image/png;base64,")
    page.select_option("#slices", "4")  # planned anew
    expect(page.locator("#reading")).to_have_text("")
    page.locator("#tray .remove").first.click()
    expect(page.locator("#tray li")).to_have_count(2)
    assert page.locator("#alert p").count() == 0


def test_a_picture_that_browsers_do_not_show_is_shown(open_page: OpenPage) -> None:
    page = open_page()
    give(page, "phone.heic", heic(Image.open(EXAMPLES / "word.png").convert("RGB")))
    page.locator("#tray li").wait_for()
    expect(page.locator("#pages-dialog")).to_be_hidden()
    page.wait_for_function("document.getElementById('picture').naturalWidth > 100")
    document, _ = sent(page)
    assert "#" not in document["image_url"]["url"]


def test_no_more_pages_are_taken_than_there_is_room_for(open_page: OpenPage) -> None:
    page = open_page()
    give(page, "long.pdf", coloured(*[RED, GREEN, BLUE] * 6))
    expect(page.locator("#pages-list input:checked")).to_have_count(16)
    page.click("#pages-more")
    expect(page.locator("#pages-list input")).to_have_count(18)
    expect(page.locator("#pages-more")).to_be_hidden()
    page.locator("#pages-list input").last.check()
    expect(page.locator("#pages-note")).to_contain_text("there is room for 16")
    expect(page.locator("#pages-add")).to_be_disabled()
    page.click("#pages-none")
    expect(page.locator("#pages-add")).to_be_disabled()
    page.locator("#pages-list input").last.check()
    page.click("#pages-add")
    page.locator("#tray li").wait_for()
    document, _ = sent(page)
    assert document["image_url"]["url"].endswith("#18")


def test_a_choice_may_be_given_up(open_page: OpenPage) -> None:
    page = open_page()
    for how in ("Escape", "Cancel"):
        give(page, "two.pdf", word_and_number("PDF"))
        expect(page.locator("#pages-dialog")).to_be_visible()
        if how == "Escape":
            page.keyboard.press("Escape")
        else:
            page.click("#pages-cancel")
        expect(page.locator("#pages-dialog")).to_be_hidden()
        expect(page.locator("#reading")).to_have_text("")
    assert page.locator("#tray li").count() == page.locator("#alert p").count() == 0


def test_a_document_that_is_locked_says_so(open_page: OpenPage) -> None:
    page = open_page()
    give(page, "secret.pdf", protected(coloured(RED)), "application/pdf")
    expect(page.locator("#alert p").first).to_contain_text("secret.pdf is protected by a password.")
    assert page.locator("#tray li").count() == 0


def test_names_and_previews_are_shown_as_text_and_pictures_only(open_page: OpenPage) -> None:
    page = open_page()

    def spoil(route: Route) -> None:
        found = route.fetch().json()
        found["previews"][0]["page"] = "<img src=x onerror=alert(1)>"
        route.fulfill(json=found)

    page.route("**/v1/pages", spoil)
    give(page, "<b>two</b>.pdf", word_and_number("PDF"))
    expect(page.locator("#pages-title")).to_have_text("Pages of <b>two</b>.pdf")
    assert page.locator("#pages-list img").count() == 2
    assert page.locator("#pages-dialog b").count() == 0
    page.click("#pages-cancel")
