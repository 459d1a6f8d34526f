"""Whatever comes to the page from outside is shown as text, in every place where it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from conftest import OpenPage
from helpers.page import CHAT, EXAMPLES, add, answer_with, ask
from playwright.sync_api import Page, Route, expect

# Closes an attribute, and makes elements that run a script at once. Without a slash, so that a file can have this name.
HOSTILE = """x"'><img src=x onerror="taken=1"><svg onload="taken=1"><iframe srcdoc=x>"""
QUESTION = f"Why {HOSTILE}?"
SAID = (HOSTILE, json.dumps(HOSTILE)[1:-1])  # as it is, and within JSON
MADE = (
    "[onerror], [onload], [srcdoc], iframe, script:not([src^='page/']), svg:not(#overlay), "
    "a[href*=taken], a[href^=data]"
)


def change(page: Page, path: str, how: Callable[[Any], None]) -> None:
    """What the server says at a path is changed before it comes to the page."""

    def handle(route: Route) -> None:
        response = route.fetch()
        body = response.json()
        how(body)
        route.fulfill(response=response, json=body)

    page.route(path, handle)


def rename_model(card: Any) -> None:
    card["data"][0]["id"] = HOSTILE
    card["data"][0]["pocketvlm"]["max_slice_nums"] = HOSTILE


def spoil_plan(found: Any) -> None:
    for plan in found["images"][0]["plans"]:
        plan["visual_tokens"] = HOSTILE
        for view in plan["views"]:
            view |= {"visual_tokens": HOSTILE, "rows": HOSTILE, "columns": HOSTILE}
            view["downsample_mode"] = HOSTILE


def by_figures(page: Page) -> None:
    """An answer whose figures are no figures."""
    stages = dict.fromkeys(("preprocess", "queue", "encode", "prefill", "decode"), 0)
    usage = {"prompt_tokens": HOSTILE, "completion_tokens": HOSTILE, "visual_tokens": HOSTILE}
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "Well."}, "finish_reason": HOSTILE}]},
        {"choices": [], "usage": usage, "timings": {**stages, "total": 1, "views": []}},
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHAT, lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "Why?")


def by_model(page: Page) -> None:
    change(page, "**/v1/models", rename_model)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.title().startswith(HOSTILE)
    ask(page, "Who?")


def by_plan(page: Page) -> None:
    change(page, "**/v1/view_plan", spoil_plan)
    add(page, "receipt.png")


def by_file(page: Page) -> None:
    content = (EXAMPLES / "word.png").read_bytes()
    page.set_input_files("#files", {"name": f"{HOSTILE}.png", "mimeType": "image/png", "buffer": content})
    page.locator("#tray li").wait_for()
    answer_with(page, "Well.")
    ask(page, "Which?")


def by_unread_file(page: Page) -> None:
    for name, content in (
        (f"1 {HOSTILE}.pdf", b"%PDF-"),
        (f"2 {HOSTILE}.png", b""),
        (f"3 {HOSTILE}.png", b"no picture"),
    ):
        page.set_input_files("#files", {"name": name, "mimeType": "", "buffer": content})
        page.locator("#alert p", has_text=name).wait_for()


def by_error_of_plan(page: Page) -> None:
    error = {"error": {"message": HOSTILE}}
    page.route("**/v1/view_plan", lambda route: route.fulfill(status=400, json=error))
    page.set_input_files("#files", EXAMPLES / "word.png")
    page.locator("#alert p").wait_for()


def by_error(page: Page) -> None:
    page.route(CHAT, lambda route: route.fulfill(status=400, json={"error": {"message": HOSTILE}}))
    ask(page, "Why?")


def by_error_within(page: Page) -> None:
    body = f"data: {json.dumps({'error': {'message': HOSTILE}})}\n\n"
    page.route(CHAT, lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "Why?")


def by_answer(page: Page) -> None:
    kinds = ("{}", "# {}", "- {}", "3. {}", "> {}", "**{}**", "`{}`", "```\n{}\n```", "~~{}~~", "|{}|b|\n|-|-|\n|a|{}|")
    links = ("[{}](javascript:taken=1)", "[{}](data:text/html,{})", "![{}](javascript:taken=1)")
    written = "\n\n".join((*kinds, *links, "<a href='javascript:taken=1'>a</a>"))
    answer_with(page, written.replace("{}", HOSTILE), reasoning_content=HOSTILE)
    ask(page, QUESTION)
    ask(page, QUESTION)  # the first is history now
    shown = page.locator(".body").evaluate_all("found => found.map(one => one.textContent)")
    assert [text.count(HOSTILE) for text in shown] == [written.count("{}")] * 2
    page.locator(".reasoning summary").first.click()


def by_label(page: Page) -> None:
    add(page, "receipt.png")
    answer_with(page, json.dumps([{"label": HOSTILE, "box": [1, 2, 300, 400]}, {"label": HOSTILE, "point": [5, 6]}]))
    ask(page, "Where?")


def by_table(page: Page) -> None:
    page.check("#schema-mode")
    rows = [{HOSTILE: HOSTILE}, {HOSTILE: {HOSTILE: [HOSTILE, [HOSTILE]]}}]
    answer_with(page, json.dumps(rows))
    ask(page, "As a table?")
    page.locator(".body summary").click()


def by_schema(page: Page) -> None:
    page.check("#schema-mode")
    page.fill("#schema", HOSTILE)
    page.fill("#question", "As a table?")
    page.press("#question", "Enter")
    page.locator("#alert p").wait_for()


def by_code(page: Page) -> None:
    answer_with(page, HOSTILE)
    ask(page, QUESTION).get_by_role("button", name="Copy as Python").click()
    expect(page.locator("#code")).to_be_visible()


# Who brings it, and the elements that each have to say it: in their text, in a value or in an attribute.
WAYS = {
    by_model: ["#model", "#slices"],
    by_plan: ["#tokens-16x", "#summary", "#view-rows td", "#overlay"],
    by_file: ["#picture", ".thumbnail", "#tray .remove", "#summary", ".sent"],
    by_unread_file: ["#alert p"],
    by_error_of_plan: ["#alert p"],
    by_error: [".note", "#live"],
    by_error_within: [".note", "#live"],
    by_answer: [".question", ".thoughts", ".body", "#live"],
    by_label: ["#overlay", ".body"],
    by_table: [".result th", ".result td", ".body pre"],
    by_schema: [],
    by_code: ["#code"],
    by_figures: [".tokens-used"],
}


def test_what_comes_from_outside_is_shown_as_text(open_page: OpenPage) -> None:
    page = open_page()
    for way, places in WAYS.items():
        way(page)
        for place in places:
            script = """found => found.flatMap((one) => [
                one.textContent, one.value, ...[...one.attributes].map((attribute) => attribute.value)])"""
            said = page.locator(place).evaluate_all(script)
            assert any(one in (text or "") for text in said for one in SAID), (way.__name__, place, said)
        made = page.locator(MADE).evaluate_all("found => found.map(one => one.outerHTML)")
        assert (made, page.evaluate("typeof taken")) == ([], "undefined"), way.__name__
        page.keyboard.press("Escape")  # the dialog
        page.unroute_all()
        page.uncheck("#schema-mode")
        page.click("#anew")
