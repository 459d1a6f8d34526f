"""The page in a real browser: pictures in, answers out, and what is shown of both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import OpenPage
from helpers.page import EXAMPLES, add, answer_at_length, answer_of, answer_with, ask, begin, begun, first_of, hand_over
from helpers.serving import Serving
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

import pocketvlm

KEY = "the-secret-key"
TOTAL = "What is the total?"


def rects(page: Page, kind: str) -> list[list[float]]:
    """Left, top, width and height of what is drawn over the picture, in its pixels."""
    script = "found => found.map(one => ['x', 'y', 'width', 'height'].map(name => Number(one.getAttribute(name))))"
    return page.locator(f"#overlay {kind}").evaluate_all(script)


def test_a_chosen_picture_is_answered_as_by_the_model_itself(open_page: OpenPage, model: pocketvlm.VLM) -> None:
    page = open_page()
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(EXAMPLES / "receipt.png")
    page.locator("#tray li").wait_for()
    turn = ask(page, TOTAL)
    expected = model.ask(EXAMPLES / "receipt.png", TOTAL)
    assert answer_of(turn) == expected.text
    costs = turn.locator(".costs").inner_text()
    assert f"{expected.usage.prompt_tokens} tokens in ({expected.usage.visual_tokens} visual" in costs
    for stage in ("preprocess", "queue", "encode", "prefill", "decode", "total"):
        assert stage in costs
    said = page.locator("#live").text_content() or ""
    assert expected.text in said
    assert "End of the answer." in said


def test_pasted_and_dropped_pictures_are_asked_about_together(open_page: OpenPage, model: pocketvlm.VLM) -> None:
    page = open_page()
    hand_over(page, "paste", ["first.png"])
    page.locator("#tray li").wait_for()
    hand_over(page, "drop", ["second.png"])
    page.locator("#tray li").nth(1).wait_for()
    question = "Which picture shows a yellow star?"
    expected = model.ask([EXAMPLES / "first.png", EXAMPLES / "second.png"], question)
    assert answer_of(ask(page, question)) == expected.text
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "And the other?")
    first, answer, last = asked.value.post_data_json["messages"]
    assert [part["type"] for part in first["content"]] == ["image_url", "image_url", "text"]
    assert (answer["content"], last["content"]) == (expected.text, "And the other?")
    page.locator("#tray .remove").first.click()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "And now?")
    assert len(asked.value.post_data_json["messages"][0]["content"]) == 2


def test_a_new_conversation_starts_from_nothing(open_page: OpenPage) -> None:
    page = open_page()
    add(page, "receipt.png", "clip.mp4", "word.png")
    page.check("#schema-mode")
    answer_with(page, '[{"label": "total", "box": [1, 2, 300, 400]}]', reasoning_content="Hm.")
    ask(page, TOTAL)
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#alert p").wait_for()
    page.fill("#question", "half a")
    lists = ("#turns > li", "#tray li", "#overlay *", "#view-rows tr", "#alert p", "#live p", ".result")
    assert [selector for selector in lists if page.locator(selector).count() == 0] == []

    def assert_nothing_is_left() -> None:
        assert {selector: page.locator(selector).count() for selector in lists} == dict.fromkeys(lists, 0)
        assert page.input_value("#question") == ""
        for name in ("summary", "reading", "tokens-16x", "tokens-4x", "tokens-auto"):
            assert page.locator(f"#{name}").text_content() == "", name
        assert page.locator("#picture").get_attribute("src") is None
        assert page.locator("#clip").get_attribute("src") is None
        for name in ("empty", "no-turns"):
            expect(page.locator(f"#{name}")).to_be_visible()

    page.click("#anew")
    assert_nothing_is_left()
    # What is being read or waits to be asked then belongs to the conversation that was left.
    held: list[Route] = []
    page.route("**/v1/view_plan", lambda route: held.append(route))
    with page.expect_request("**/v1/view_plan"):
        page.set_input_files("#files", [EXAMPLES / "receipt.png", EXAMPLES / "word.png"])
    page.fill("#question", TOTAL)
    page.press("#question", "Enter")
    expect(page.locator("#stop")).to_be_visible()
    page.click("#anew")
    expect(page.locator("#stop")).to_be_hidden()
    assert_nothing_is_left()
    assert first_of(page, held)
    page.unroute("**/v1/view_plan")
    page.uncheck("#schema-mode")
    page.unroute("**/v1/chat/completions")
    with page.expect_request("**/v1/chat/completions") as asked:
        assert answer_of(ask(page, "Which?"))
    assert asked.value.post_data_json["messages"] == [{"role": "user", "content": "Which?"}]
    assert "mm_processor_kwargs" not in asked.value.post_data_json
    add(page, "receipt.png")
    expect(page.locator("#overlay rect.view")).to_have_count(4)


def test_a_clip_is_asked_about(open_page: OpenPage, model: pocketvlm.VLM) -> None:
    page = open_page()
    add(page, "clip.mp4")
    assert page.locator("#clip").is_visible()
    question = "Which way does the circle move?"
    turn = ask(page, question)
    assert answer_of(turn) == model.ask(EXAMPLES / "clip.mp4", question).text
    assert " views at " in turn.locator(".costs").inner_text()


def test_an_answer_streams_and_stops_when_it_is_told_to(open_page: OpenPage, server: Serving) -> None:
    page = open_page()
    add(page, "word.png")
    answer_at_length(page, 12_000)
    turn = begin(page, "What does it say?")
    begun(turn)
    for _ in range(2):
        length = len(answer_of(turn))
        page.wait_for_function("length => document.querySelector('.body').innerText.length > length", arg=length)
    page.click("#stop")
    expect(turn.locator(".note")).to_have_text("Stopped.")
    expect(page.locator("#question")).to_be_focused()
    partial = answer_of(turn)
    assert partial
    ends = time.monotonic() + 10
    while "pocketvlm:num_requests_running 0.0" not in server.ask("/metrics", key=KEY)[1]:
        assert time.monotonic() < ends, "the server went on"
        time.sleep(0.05)
    page.unroute("**/v1/chat/completions")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "What does it say?")
    said = asked.value.post_data_json["messages"][1]
    assert (said["role"], said["content"].strip()) == ("assistant", partial.strip())  # a page shows no space at the end


def test_the_switch_of_rates_shows_views_tokens_and_what_they_cost(open_page: OpenPage, model: pocketvlm.VLM) -> None:
    page = open_page()
    add(page, "receipt.png")
    used: dict[str, int] = {}
    for mode in ("16x", "4x", "auto"):
        page.check(f"input[name=rate][value='{mode}']")
        used[mode] = model.ask(EXAMPLES / "receipt.png", TOTAL, downsample_mode=mode, max_tokens=1).usage.visual_tokens
        assert page.locator(f"#tokens-{mode}").inner_text() == str(used[mode])
        assert f"{used[mode]} visual tokens" in page.locator("#summary").inner_text()
        views = rects(page, "rect.view")
        assert len(views) == 4  # slices, two by two
        assert max(x + width for x, _, width, _ in views) == pytest.approx(280, abs=2)
        assert max(y + height for _, y, _, height in views) == pytest.approx(392, abs=2)
        tokens = page.locator("#view-rows td:last-child").all_text_contents()
        assert sum(map(int, tokens)) == used[mode]
    assert used["16x"] < used["4x"]
    page.check("input[value='16x']")
    answer_at_length(page, 3)
    ask(page, TOTAL)
    page.check("input[value='4x']")
    comparison = ask(page, TOTAL).locator(".comparison").inner_text()
    assert f"(16x → 4x): visual tokens {used['16x']} → {used['4x']}" in comparison
    assert "total" in comparison
    answer_at_length(page, 5)  # a longer answer takes longer, which says nothing about pictures
    assert "total" not in ask(page, TOTAL).locator(".comparison").inner_text()
    page.select_option("#slices", "1")
    expect(page.locator("#overlay rect.view")).to_have_count(1)
    assert int(page.locator("#tokens-4x").inner_text()) < used["4x"]
    page.uncheck("#show-views")
    assert rects(page, "rect.view") == []


def test_an_answer_by_a_schema_is_a_table(open_page: OpenPage) -> None:
    page = open_page()
    add(page, "receipt.png")
    page.check("#schema-mode")
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"total": {"enum": [11.6, 2.8]}, "items": {"type": "array", "minItems": 2, "maxItems": 2}},
        "required": ["total", "items"],
        "additionalProperties": False,
    }
    item = {"type": "object", "properties": {"of": {"enum": ["Coffee", "Muffin"]}}, "required": ["of"]}
    schema["properties"]["items"]["items"] = {**item, "additionalProperties": False}
    page.fill("#schema", json.dumps(schema))
    turn = ask(page, TOTAL)
    value = json.loads(turn.locator(".body pre").text_content() or "")
    jsonschema.validate(value, schema)
    table = turn.locator(".result > table")
    assert table.locator(":scope > tbody > tr > th").all_text_contents() == ["total", "items"]
    assert float(table.locator("td").first.inner_text()) == value["total"]
    assert table.locator("table th").all_text_contents() == ["of"]
    assert table.locator("table td").all_text_contents() == [one["of"] for one in value["items"]]
    page.fill("#schema", "{")
    page.fill("#question", TOTAL)
    page.press("#question", "Enter")
    expect(page.locator("#alert")).to_contain_text("The schema is not JSON")
    expect(page.locator("#question")).to_have_value(TOTAL)
    page.fill("#schema", '{"type": "colour"}')  # JSON, but no schema: the server says so
    turn = ask(page, TOTAL)
    expect(turn.locator(".note.failed")).to_contain_text("colour")
    expect(page.locator("#question")).to_have_value(TOTAL)


def test_a_file_that_cannot_be_read_is_named_and_keeps_none_away(open_page: OpenPage) -> None:
    page = open_page()
    broken: list[Any] = [
        {"name": "broken.png", "mimeType": "image/png", "buffer": (EXAMPLES / "word.png").read_bytes()[:200]},
        {"name": "pages.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7\n"},
        {"name": "scan.tif", "mimeType": "image/tiff", "buffer": b"II*\0"},
        {"name": "nothing.png", "mimeType": "image/png", "buffer": b""},
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"},
        {"name": "word.png", "mimeType": "image/png", "buffer": (EXAMPLES / "word.png").read_bytes()},
    ]
    page.set_input_files("#files", broken)
    page.locator("#tray li").wait_for()
    lines = page.locator("#alert p").all_inner_texts()
    names = ["broken.png", "pages.pdf", "scan.tif", "nothing.png", "notes.txt"]
    assert [line.partition(" is ")[0] for line in lines] == names
    assert "damaged or cut off" in lines[0]
    assert "damaged or cut off" in lines[1]
    assert page.locator("#tray li").count() == 1
    page.locator("#alert button").first.click()
    assert page.locator("#alert p").count() == 4


def test_a_fault_is_said_in_its_turn_and_the_question_can_be_asked_again(
    open_page: OpenPage, model: pocketvlm.VLM
) -> None:
    page = open_page()
    add(page, "receipt.png")
    error = {"error": {"message": "many requests are in flight", "type": "rate_limit_error"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=error))
    expect(ask(page, TOTAL).locator(".note.failed")).to_have_text("many requests are in flight")
    assert page.input_value("#question") == TOTAL
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body="data: {}\n\n"[:6]))
    expect(ask(page, TOTAL).locator(".note.failed")).to_contain_text("cut off")
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    expect(ask(page, TOTAL).locator(".note.failed")).to_contain_text("does not answer")
    page.unroute("**/v1/chat/completions")
    assert answer_of(ask(page, TOTAL)) == model.ask(EXAMPLES / "receipt.png", TOTAL).text


def test_a_connection_that_breaks_is_told_in_our_words(open_page: OpenPage) -> None:
    page = open_page()
    page.evaluate("""() => {
        const broken = { pull: (stream) => stream.error(new TypeError("network error")) };
        window.fetch = async () => new Response(new ReadableStream(broken));
    }""")
    expect(ask(page, TOTAL).locator(".note.failed")).to_contain_text("the connection to the server broke")


def test_a_picture_that_takes_its_time_is_named_meanwhile(open_page: OpenPage) -> None:
    page = open_page()
    held: list[Route] = []
    page.route("**/v1/view_plan", lambda route: held.append(route))
    page.set_input_files("#files", EXAMPLES / "receipt.png")
    expect(page.locator("#reading")).to_have_text("Reading receipt.png…")
    first_of(page, held).abort()
    expect(page.locator("#alert p")).to_contain_text("The server does not answer.")
    assert "cannot be read" not in page.locator("#alert").inner_text()  # it is no fault of the file
    expect(page.locator("#reading")).to_have_text("")


def test_boxes_and_points_of_an_answer_are_drawn_where_they_are(open_page: OpenPage) -> None:
    page = open_page()
    add(page, "receipt.png")
    page.uncheck("#show-views")
    tags = "<ref>the total</ref><box>100 800 600 900</box>, <point>500 250</point> <box>1 2 3 4000</box>"
    answer_with(page, f"Here: {tags}")
    turn = ask(page, "Where is it?")
    assert rects(page, "rect.box") == [pytest.approx([28, 0.8 * 392, 140, 0.1 * 392])]
    point = page.locator("#overlay .point")
    assert (point.get_attribute("cx"), point.get_attribute("cy")) == ("140", "98")
    chips = turn.locator(".chip")
    assert chips.all_inner_texts() == ["1 the total", "2 point 500 250"]
    assert "<box>1 2 3 4000</box>" in answer_of(turn)  # no place in a picture: it stays what it is, words
    assert "the total" in (page.locator("#overlay").get_attribute("aria-label") or "")
    found = [{"bbox_2d": [0, 0, 500, 500], "label": "one"}, {"box": [500, 500, 1000, 1000]}, {"point_2d": [1, 2]}]
    answer_with(page, f"```json\n{json.dumps(found)}\n```")
    ask(page, "Where are they?")
    assert rects(page, "rect.box") == [[0, 0, 140, 196], [140, 196, 140, 196]]
    assert page.locator("#overlay .point").count() == 1
    chips.first.click()
    assert len(rects(page, "rect.box")) == 1


def test_a_box_of_the_model_itself_is_drawn(open_page: OpenPage, model: pocketvlm.VLM) -> None:
    page, question = open_page(), "Where is the yellow star? Answer with a box."
    add(page, "second.png")
    turn = ask(page, question)
    left, top, right, bottom = map(int, model.ask(EXAMPLES / "second.png", question).text.split())
    scaled = [0.168 * one for one in (left, top, right - left, bottom - top)]
    assert rects(page, "rect.box") == [pytest.approx(scaled)]
    assert turn.locator(".chip").count() == 1


def test_what_a_model_writes_stays_words(open_page: OpenPage) -> None:
    page = open_page()
    text = (
        "# Title ##\n\nSome **bold** and `code`.\n\n- one\n  - inner\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```html\n<script>alert(1)</script>\n```\n"
        '<img src="http://192.0.2.1/x.png" onerror="document.title = 1"> ![x](http://192.0.2.1/y.png) '
        "[bad](javascript:document.title=1) [good](https://example.org/) <b>tag</b> \ue000\uf8ff"
    )
    answer_with(page, text, reasoning_content="Hm, <i>well</i>.")
    title = page.title()
    turn = ask(page, "Write something.")
    body = turn.locator(".body")
    for tag, count in {"strong": 1, "ul ul li": 1, "table td": 2, "pre": 1, "img, script, b, i, iframe": 0}.items():
        assert body.locator(tag).count() == count, tag
    assert body.locator("h3").inner_text() == "Title"
    links = body.locator("a").evaluate_all("found => found.map(one => [one.href, one.rel, one.target])")
    addresses = ["http://192.0.2.1/x.png", "https://example.org/"]  # nobody asks these before they are pressed
    assert links == [[address, "noopener noreferrer nofollow", "_blank"] for address in addresses]
    assert '<img src="http://192.0.2.1/x.png" onerror="document.title = 1">' in body.inner_text()
    assert turn.locator(".thoughts").text_content() == "Hm, <i>well</i>."
    assert page.title() == title


def test_no_word_of_an_answer_is_lost(open_page: OpenPage) -> None:
    """However deep, odd or unfinished: what is no Markdown is text."""
    page = open_page()
    texts = [
        "\n".join(f"{'  ' * depth}- word{depth}" for depth in range(12)),
        "\n".join(f"{'> ' * depth}word{depth}" for depth in range(12)),
        "1. one\n\n2. two\n   more\n10) ten\n\n***bold* odd** _a_b_ **unfinished `code [link](",
        "```\nunfinished fence\n\n# inside",
        "|one|two\n|-|-\n|three\n|four|five|six|\nnot a row",
        "####### seven\n#no heading\n## closed # ##\n# C#\n---\nafter\r\nreturn\rold",
        "<ref>star</ref><box>1 2 3</box> <point>4 5</point> <box>(10, 20), (30, 40)</box> <box>7 8 9 10",
    ]
    script = """async (texts) => {
        const [markdown, grounding] = ["/page/markdown.js", "/page/grounding.js"].map((path) => import(path));
        const [{ render }, { findMarks, nameOf }] = [await markdown, await grounding];
        return texts.map((text) => {
            const parent = document.createElement("div");
            render(parent, text, findMarks(text), (mark) => document.createTextNode(` ${nameOf(mark)} `));
            return parent.textContent;
        });
    }"""
    for text, shown in zip(texts, page.evaluate(script, texts), strict=True):
        words = re.findall(r"[a-z]+\d*|[CG]#", text)
        assert [word for word in words if word not in shown and word not in ("ref", "box", "point")] == [], text


def test_a_photograph_is_planned_and_drawn_upright(open_page: OpenPage, tmp_path: Path) -> None:
    picture = Image.open(EXAMPLES / "receipt.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture.save(tmp_path / "photo.jpg", exif=exif)
    page = open_page()
    page.set_input_files("#files", tmp_path / "photo.jpg")
    page.locator("#tray li").wait_for()
    assert "392 × 280 pixels" in page.locator("#summary").inner_text()
    assert page.locator("#overlay").get_attribute("viewBox") == "0 0 392 280"
    decoded = "async (one) => { await one.decode(); return [one.naturalWidth, one.naturalHeight]; }"
    size = page.locator("#picture").evaluate(decoded)
    assert size == [392, 280]


def test_the_policy_stops_what_a_script_would_ask_of_others(browser: Browser, server: Serving) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/")
    stopped = """async () => {
        const stopped = new Promise((resolve) => document.addEventListener("securitypolicyviolation", resolve));
        await fetch("http://127.0.0.1:9/").catch(() => {});
        return (await stopped).effectiveDirective;
    }"""
    assert page.evaluate(stopped) == "connect-src"
    page.close()


# What writes down the body of a request beside sending it, put before the code.
WRITE_BODY = {
    "curl": 'curl() { tee sent.json | command curl "$@"; }\n',
    "Python": """
import json, openai
class OpenAI(openai.OpenAI):
    def __init__(self, **options):
        super().__init__(**options)
        self.create, self.chat.completions.create = self.chat.completions.create, self.write
    def write(self, extra_body, **body):
        open("sent.json", "w").write(json.dumps({**body, **extra_body}))
        return self.create(extra_body=extra_body, **body)
openai.OpenAI = OpenAI
""",
}


@pytest.mark.parametrize("title", ["curl", "Python"])
def test_the_code_of_a_request_is_that_request(open_page: OpenPage, tmp_path: Path, title: str) -> None:
    if title == "curl" and shutil.which("curl") is None:
        pytest.skip("needs curl: `apt-get install curl`")
    name = "the 'total' $(1) `2`.png"
    shutil.copy(EXAMPLES / "receipt.png", tmp_path / name)
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{page.url}?a=$(touch${{IFS}}taken);`touch${{IFS}}taken`/'\"#/b")  # a link that somebody else wrote
    page.wait_for_selector("html[data-ready]")
    page.set_input_files("#files", tmp_path / name)
    page.locator("#tray li").wait_for()
    page.check("input[value='16x']")
    ask(page, 'Is "$HOME" \\n `date` é \\ there?')
    with page.expect_request("**/v1/chat/completions") as asked:
        turn = ask(page, TOTAL)
    turn.get_by_role("button", name=f"Copy as {title}").click()
    expect(page.locator("#code-note")).to_contain_text("Copied")
    code = page.input_value("#code")
    assert page.evaluate("navigator.clipboard.readText()") == code
    assert KEY not in code

    def run(code: str) -> str:
        command = ["bash", "-c", code] if title == "curl" else [sys.executable, "-c", code]
        environment = {**os.environ, "OPENAI_API_KEY": KEY}
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "check": True, "timeout": 60}
        return subprocess.run(command, capture_output=True, text=True, **options).stdout

    sent = asked.value.post_data_json
    del sent["stream"], sent["stream_options"]
    done = run(WRITE_BODY[title] + code)
    assert json.loads((tmp_path / "sent.json").read_text()) == sent
    assert {file.name for file in tmp_path.iterdir()} == {name, "sent.json"}
    text = json.loads(done)["choices"][0]["message"]["content"] if title == "curl" else done.rstrip("\n")
    assert text == answer_of(turn)
