"""The page without a mouse, without eyes, on a phone, in the dark, and on a server that wants a key."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from conftest import KEY, OpenPage
from helpers.page import EXAMPLES, add, answer_at_length, answer_of, answer_with, ask, begin, begun, first_of
from playwright.sync_api import Page, Route, expect

import pocketvlm

TOTAL = "What is the total?"
TABLE = "\n".join("|" + cell * 12 for cell in ("column|", "---|", "1|"))
LONG = "word" * 200 + "\n\n```\n" + "code " * 60 + "\n```\n\n" + TABLE


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus, which everybody has to see."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"the focus on {selector} is not seen"
            return
    raise AssertionError(f"Tab does not reach {selector}")


def violations(page: Page) -> list[tuple[str, list[str]]]:
    found = Axe().run(page).response["violations"]
    return [(one["id"], [str(node["target"]) for node in one["nodes"]]) for one in found]


def test_everything_is_reached_with_the_keyboard_alone(open_page: OpenPage, model: pocketvlm.VLM) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([EXAMPLES / "receipt.png", EXAMPLES / "word.png"])
    page.locator("#tray li").nth(1).wait_for()
    tab_to(page, "#tray li:last-child .remove")
    page.keyboard.press("Enter")
    expect(page.locator("#tray .thumbnail")).to_be_focused()
    tab_to(page, "input[name=rate]")
    page.keyboard.press("ArrowLeft")
    mode = page.locator("input[name=rate]:checked").get_attribute("value")
    assert mode == "16x"  # the model's own is 4x, beside it
    tab_to(page, "#question")
    page.keyboard.type(TOTAL)
    page.keyboard.press("Enter")
    turn = page.locator("#turns > li")
    turn.locator(".actions button").first.wait_for()
    expected = model.ask(EXAMPLES / "receipt.png", TOTAL, downsample_mode="16x").text
    assert answer_of(turn) == expected
    page.evaluate("document.activeElement.blur()")
    tab_to(page, ".actions button")
    page.keyboard.press("Enter")
    expect(page.locator("#code")).to_be_focused()
    page.keyboard.press("Escape")
    expect(turn.locator(".actions button").first).to_be_focused()
    tab_to(page, "#anew")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    expect(turn).to_have_count(0)
    answer_at_length(page, 12_000)
    turn = begin(page, TOTAL)
    begun(turn)
    page.keyboard.press("Escape")
    expect(turn.locator(".note")).to_have_text("Stopped.")


def with_adapters(page: Page, *names: str) -> None:
    """From the next reload on the server has these adapters, as far as the page knows."""

    def answer(route: Route) -> None:
        cards = route.fetch().json()["data"]
        added = [{**cards[0], "id": name, "root": name, "parent": cards[0]["id"]} for name in names]
        route.fulfill(json={"object": "list", "data": cards + added})

    page.unroute("**/v1/models")
    page.route("**/v1/models", answer)


def reload(page: Page) -> None:
    page.reload()
    page.wait_for_selector("html[data-ready]")


def model_of(page: Page) -> str:
    """The model that the next question goes to."""
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Which?")
    return str(asked.value.post_data_json["model"])


def test_one_of_several_models_is_chosen_with_the_keyboard_and_remembered(open_page: OpenPage) -> None:
    page = open_page()
    choice = page.get_by_label("Model", exact=True)
    expect(choice).to_be_hidden()  # one alone is no choice
    expect(page.locator("#model")).to_be_visible()
    odd = "<b>team</b>/é"
    with_adapters(page, "receipts", odd)
    reload(page)
    answer_with(page, "This one.")
    expect(choice).to_be_visible()
    expect(page.locator("#model")).to_be_hidden()
    assert choice.locator("option").all_inner_texts() == ["reader", "receipts", odd]
    assert model_of(page) == "reader"
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "#models")
    page.keyboard.press("ArrowDown")
    assert model_of(page) == "receipts"
    expect(page).to_have_title("receipts – pocketvlm")
    page.locator("#turns > li").first.locator(".actions button").first.click()
    assert '"model": "reader"' in page.locator("#code").input_value()  # the code of a request is that request
    page.keyboard.press("Escape")
    choice.select_option(odd)
    reload(page)
    answer_with(page, "This one.")
    expect(choice).to_have_value(odd)
    assert model_of(page) == odd
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert violations(page) == []
    with_adapters(page, "receipts")  # the one that was chosen is gone
    reload(page)
    answer_with(page, "This one.")
    expect(choice).to_have_value("reader")
    assert model_of(page) == "reader"


def test_a_model_that_is_gone_is_named_in_the_turn(open_page: OpenPage) -> None:
    page = open_page()
    with_adapters(page, "gone")
    reload(page)
    page.get_by_label("Model", exact=True).select_option("gone")
    turn = ask(page, "Who is there?")
    expect(turn.locator(".note")).to_contain_text("this server has no model 'gone'")
    page.evaluate("sessionStorage.removeItem('pocketvlm-model')")


def test_axe_finds_nothing(open_page: OpenPage) -> None:
    page = open_page(reduced_motion="reduce")

    def check() -> None:
        for scheme, width in (("light", 1280), ("dark", 360)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            assert violations(page) == [], scheme

    check()
    add(page, "receipt.png", "clip.mp4")
    page.locator("#tray .thumbnail").first.click()
    page.locator("#views summary").click()
    answer_with(page, f"# Title\n\n<box>1 2 300 400</box> [link](https://example.org) `code`\n\n{LONG}\n\n> quoted")
    ask(page, "Where?")
    page.check("#schema-mode")
    answer_with(page, '{"total": 11.60, "items": [{"of": "Coffee", "price": 2.8}]}', reasoning_content="Well.")
    ask(page, "As a table?")
    page.locator(".reasoning summary").click()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": {"message": "No."}}))
    ask(page, "Once more?")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#alert p").wait_for()
    check()
    page.locator(".actions button").first.click()
    page.locator("#code-note").wait_for()
    check()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(open_page: OpenPage) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = open_page(**phone)
    assert page.locator("#camera").get_attribute("capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.tap("#photograph")
    chooser.value.set_files(EXAMPLES / "receipt.png")
    page.locator("#tray li").wait_for()
    assert page.locator("#overlay rect.view").count() == 4
    assert answer_of(ask(page, TOTAL))
    page.check("#schema-mode")
    answer_with(page, LONG)
    page.uncheck("#schema-mode")
    ask(page, "x" * 300)
    page.locator("#views summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.body.scrollWidth") == 360
    small = """() => [...document.querySelectorAll("button, select, summary")]
        .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 24)
        .map((one) => one.outerHTML)"""
    assert page.evaluate(small) == []  # a finger finds them


def test_on_a_phone_answers_errors_and_the_button_that_stops_are_seen_without_scrolling(open_page: OpenPage) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.set_input_files("#files", EXAMPLES / "receipt.png")
    page.locator("#tray li").wait_for()
    for _ in range(3):
        ask(page, TOTAL)
        expect(page.locator("#turns > li .body").last).to_be_in_viewport(ratio=1)
        expect(page.locator("#ask")).to_be_in_viewport(ratio=1)
    answer_at_length(page, 12_000)
    begin(page, TOTAL)
    page.wait_for_selector(".answer.running")
    expect(page.locator("#stop")).to_be_in_viewport(ratio=1)
    page.tap("#stop")
    page.locator(".actions button").last.wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.set_input_files("#files", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.locator("#alert p")).to_be_in_viewport(ratio=0.98)  # a border may be a part of a pixel


def test_nothing_can_be_pressed_before_somebody_listens(open_page: OpenPage) -> None:
    page = open_page()
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    for name in ("choose", "ask"):
        expect(page.locator(f"#{name}")).to_be_disabled()
    first_of(page, held).continue_()
    for name in ("choose", "ask"):
        expect(page.locator(f"#{name}")).to_be_enabled()


def test_who_wants_no_motion_gets_none(open_page: OpenPage) -> None:
    moving = "getComputedStyle(document.querySelector('.answer .body'), '::after').animationName"
    page = open_page(reduced_motion="reduce")
    answer_at_length(page, 12_000)
    begin(page, TOTAL)
    page.wait_for_selector(".answer.running")
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "blink"
    page.click("#stop")
    page.locator(".actions button").first.wait_for()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(open_page: OpenPage) -> None:
    page = open_page(key=None)
    dialog = page.locator("#key-dialog")
    dialog.wait_for()
    expect(page.locator("#key")).to_be_focused()
    assert violations(page) == []
    page.fill("#key", "a wrong one")
    page.keyboard.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("without spaces")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("refused that key")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-ready]")
    assert dialog.is_hidden()
    add(page, "word.png")
    assert answer_of(ask(page, "What does it say?"))
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[KEY], 0, ""]
    assert KEY not in page.content()
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#key-dialog").wait_for()
    other.keyboard.press("Escape")
    expect(other.locator("#alert")).to_contain_text("wants an API key")
