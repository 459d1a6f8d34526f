"""What people do on the page, for its tests."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Locator, Page, Route, expect

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = "**/v1/chat/completions"


def add(page: Page, *names: str) -> None:
    """Choose files of `examples`; returns when they are in the tray."""
    before = page.locator("#tray li").count()
    page.set_input_files("#files", [EXAMPLES / name for name in names])
    page.locator("#tray li").nth(before + len(names) - 1).wait_for()


def ask(page: Page, question: str) -> Locator:
    """Ask, wait for the end, and return the turn."""
    turn = begin(page, question)
    turn.locator(".actions button").first.wait_for()
    return turn


def begin(page: Page, question: str) -> Locator:
    """Ask, and return the turn as soon as it is there."""
    turn = page.locator("#turns > li").nth(page.locator("#turns > li").count())
    page.fill("#question", question)
    page.press("#question", "Enter")
    turn.wait_for()
    return turn


def begun(turn: Locator) -> None:
    """Wait until an answer has some words."""
    expect(turn.locator(".body")).to_have_text(re.compile(r"\S{3}"))


def answer_of(turn: Locator) -> str:
    return turn.locator(".body").inner_text()


def answer_with(page: Page, text: str, **delta: str) -> None:
    """The next requests get this answer, in pieces of seven characters, whatever the model would say."""
    deltas = [delta, *({"content": text[i : i + 7]} for i in range(0, len(text), 7))]
    chunks = [{"choices": [{"index": 0, "delta": one, "finish_reason": None}]} for one in deltas]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def answer_at_length(page: Page, tokens: int) -> None:
    """The model goes on for so many tokens, whatever it wants to say."""
    more = {"min_tokens": tokens, "max_tokens": tokens}  # ends of answers that are ignored would be tokens without text
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.continue_(post_data=json.dumps({**route.request.post_data_json, **more})))


def first_of(page: Page, held: list[Route]) -> Route:
    """The first of the requests that a test holds, as soon as there is one."""
    for _ in range(600):
        if held:
            return held[0]
        page.wait_for_timeout(50)
    raise AssertionError("nothing was asked")


def hand_over(page: Page, event: str, names: Sequence[str]) -> None:
    """Paste ("paste") or drop ("drop") files of `examples`, under the names that browsers give them."""
    files = []
    for name in names:
        content = base64.b64encode((EXAMPLES / name).read_bytes()).decode()
        files.append({"name": "image.png" if event == "paste" else name, "base64": content})
    page.evaluate(
        """([event, files]) => {
            const transfer = new DataTransfer();
            for (const { name, base64 } of files) {
                const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/png" }));
            }
            const options = { bubbles: true, cancelable: true, clipboardData: transfer, dataTransfer: transfer };
            const made = event === "paste" ? new ClipboardEvent("paste", options) : new DragEvent("drop", options);
            (event === "paste" ? document.body : document.getElementById("stage")).dispatchEvent(made);
        }""",
        [event, files],
    )
