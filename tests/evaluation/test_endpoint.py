"""OpenAI-compatible endpoints: what is sent, what is asked again, what ends the run, and what never hangs."""

from __future__ import annotations

import base64
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.endpoint_server import Server, completion, serving

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.answerers import Reply
from pocketvlm.evaluation.endpoint import Endpoint, EndpointError
from pocketvlm.evaluation.ranges import ENDPOINT
from pocketvlm.evaluation.tasks import Clip, Example
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.synthetic.drawing.files import to_mp4, to_png

FRAME = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def example(*media: Any, question: str = "What?") -> Example:
    return Example("1", "t", media, question, ("a",), "exact")


def ask(server: Server, examples: list[Example], **options: Any) -> list[Reply]:
    endpoint = Endpoint(url=server.url, model="m", **{"backoff": 0.001, "concurrency": 2, "timeout": 10, **options})
    replies = {index: reply for index, _, reply in endpoint.answer(enumerate(examples))}
    return [replies[index] for index in range(len(examples))]


def content(part: dict[str, Any]) -> tuple[str, bytes]:
    """Media type and bytes of a part of a message."""
    head, _, data = part[part["type"]]["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data)


def test_a_request_holds_question_pictures_and_options() -> None:
    with serving(lambda _n, _r: completion("a", prompt_tokens=9, completion_tokens=1, visual_tokens=5)) as server:
        options = {"sampling": {"temperature": 0.0}, "media": {"downsample_mode": "4x"}, "api_key": "secret"}
        (reply,) = ask(server, [example(FRAME)], **options)
    assert (reply.answer, reply.prompt_tokens, reply.visual_tokens, reply.completion_tokens) == ("a", 9, 5, 1)
    assert reply.seconds > 0
    (asked,) = server.requests
    assert {key: asked[key] for key in asked if key != "messages"} == {
        "model": "m",
        "max_tokens": 256,
        "temperature": 0.0,
        "mm_processor_kwargs": {"downsample_mode": "4x"},
    }
    assert server.headers[0]["authorization"] == "Bearer secret"
    picture, question = asked["messages"][0]["content"]
    kind, data = content(picture)
    assert kind == "image/png"
    assert np.array_equal(load_image(data), FRAME)
    assert question == {"type": "text", "text": "What?"}


def test_calls_of_tools_and_their_results_go_as_the_protocol_has_them() -> None:
    calls = [{"function": {"name": "look", "arguments": {"at": name}}} for name in ("ä", "b")]
    messages = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "r"},
    )
    with serving(lambda _n, _r: completion("a")) as server:
        ask(server, [Example("1", "t", (), "r", ("a",), "exact", messages=messages)])
    sent = server.requests[0]["messages"]
    made = sent[1]["tool_calls"]
    assert [call["type"] for call in made] == ["function", "function"]
    assert [call["function"] for call in made] == [
        {"name": "look", "arguments": '{"at": "ä"}'},
        {"name": "look", "arguments": '{"at": "b"}'},
    ]
    assert [message["tool_call_id"] for message in sent[2:4]] == [call["id"] for call in made]
    assert made[0]["id"] != made[1]["id"]
    assert [sent[i] for i in (0, 4, 5)] == [messages[i] for i in (0, 4, 5)]


def test_slices_of_one_picture_are_refused_rather_than_left_out() -> None:
    part = {"type": "image", "image": to_png(FRAME), "max_slice_nums": 1}
    asked = Example("1", "t", (), "q", ("a",), "exact", messages=({"role": "user", "content": [part]},))
    with serving(lambda _n, _r: completion("a")) as server:
        (reply,) = ask(server, [asked])
    assert "a picture has max_slice_nums or a detail of its own" in reply.error
    assert server.requests == []


def test_files_go_as_they_are_and_clips_as_video(tmp_path: Path) -> None:
    png = to_png(FRAME)
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "a.mp4").write_bytes(to_mp4([FRAME] * 3, 2.0))
    media = (tmp_path / "a.png", png, tmp_path / "a.mp4", Clip((FRAME,) * 3, 2.0))
    with serving(lambda _n, _r: completion("a")) as server:
        ask(server, [example(*media)])
    parts = server.requests[0]["messages"][0]["content"][:-1]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "video_url", "video_url"]
    assert [content(part)[1] for part in parts[:2]] == [png, png]
    for part in parts[2:]:
        with open_video(content(part)[1], None, MediaLimits(), files=False) as reader:
            assert (reader.timeline.total, reader.timeline.fps) == (3, 2.0)
            assert all(np.array_equal(pixels, FRAME) for _, pixels in reader.read(range(3)))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(status: int) -> None:
    def script(number: int, _request: dict) -> tuple[int, dict[str, str], bytes]:
        return completion("a") if number == 2 else (status, {"Retry-After": "0.001"}, b"{}")

    with serving(script) as server:
        (reply,) = ask(server, [example()])
    assert (reply.answer, reply.error, len(server.requests)) == ("a", "", 3)


def test_who_stays_busy_is_a_failure_after_the_last_attempt() -> None:
    with serving(lambda _n, _r: (500, {}, b'{"error": {"message": "out of\\nluck"}}')) as server:
        (reply,) = ask(server, [example()], retries=2)
    assert reply.error == "status 500: out of luck, after 3 attempts"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_example_is_its_own_failure_and_not_asked_again(status: int) -> None:
    def script(_number: int, request: dict) -> tuple[int, dict[str, str], bytes]:
        return (status, {}, b"{}") if request["messages"][0]["content"][-1]["text"] == "bad" else completion("a")

    with serving(script) as server:
        replies = ask(server, [example(), example(question="bad"), example()])
    assert [reply.error for reply in replies] == ["", f"status {status}", ""]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_no_access_ends_the_run_at_once(status: int) -> None:
    with (
        serving(lambda _n, _r: (status, {"Location": "http://127.0.0.1:9/"}, b"{}")) as server,
        pytest.raises(EndpointError, match=f"status {status}"),
    ):
        ask(server, [example()] * 20)
    assert len(server.requests) <= 4


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b"[" * 5000, completion(["a"])[2], completion(3)[2], b"\xff"],
)
def test_garbage_is_a_failure(body: bytes) -> None:
    with serving(lambda _n, _r: (200, {}, body)) as server:
        (reply,) = ask(server, [example()])
    assert reply.error == "the endpoint's answer is not a chat completion"


@pytest.mark.parametrize(
    ("said", "text"),
    [(None, ""), ("<think>B?</think>\n\nA", "A"), ("A <b>", "A <b>"), ("\ud800", "?")],
)
def test_reasoning_is_no_part_of_an_answer(said: str | None, text: str) -> None:
    with serving(lambda _n, _r: completion(said, prompt_tokens=True)) as server:
        (reply,) = ask(server, [example()])
    assert (reply.answer, reply.prompt_tokens, reply.error) == (text, None, "")


def test_slow_and_cut_off_answers_are_asked_again_then_fail() -> None:
    over = threading.Event()

    def script(number: int, _request: dict) -> tuple[int, dict[str, str], bytes]:
        if number:
            return 200, {"Content-Length": "1000"}, b"cut"
        over.wait(10)
        return completion("too late")

    with serving(script) as server:
        (reply,) = ask(server, [example()], timeout=0.2, retries=1)
        over.set()
    assert reply.error.endswith("after 2 attempts")
    assert len(server.requests) == 2


def test_nobody_there_is_a_failure() -> None:
    with serving(lambda _n, _r: completion("a")) as server:
        pass
    (reply,) = ask(server, [example()], retries=1)
    assert reply.error == "nobody listens there, after 2 attempts"


def test_requests_run_side_by_side_and_examples_are_drawn_no_further_ahead() -> None:
    meeting, drawn = threading.Barrier(3, timeout=10), []

    def script(_number: int, _request: dict) -> tuple[int, dict[str, str], bytes]:
        meeting.wait()  # passed by three at a time only
        return completion("a")

    def examples() -> Any:
        for index in range(9):
            drawn.append(index)
            yield index, example()

    with serving(script) as server:
        endpoint = Endpoint(url=server.url, model="m", concurrency=3)
        for answered, _ in enumerate(endpoint.answer(examples()), 1):
            assert len(drawn) - answered < 3 + 1
    assert server.max_at_once == 3


def test_an_example_that_cannot_be_sent_is_a_failure(tmp_path: Path) -> None:
    with serving(lambda _n, _r: completion("a")) as server:
        (reply,) = ask(server, [example(tmp_path / "none.png")])
    assert "none.png" in reply.error
    assert server.requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "127.0.0.1:8000"},
        {"url": "ftp://host/v1"},
        {"url": "http://user:word@host/v1"},
        {"url": "http://host/v1?x=1"},
        {"url": "http://host:99999/v1"},
        {"url": "http://"},
        {"url": "http://ho st/v1"},
        {"model": ""},
        {"api_key": "a\r\nHost: b"},
        {"concurrency": 0},
        {"timeout": 0},
        {"retries": -1},
        *({name: value} for name, allowed in ENDPOINT.items() for value in (allowed.max + 1, 1e300, 10**30, math.nan)),
        *({name: allowed.min - 1} for name, allowed in ENDPOINT.items()),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Endpoint(**{"url": "http://host/v1", "model": "m", **wrong})


def test_the_key_is_not_shown() -> None:
    endpoint = Endpoint(url="http://host/v1", model="m", api_key="secret")
    assert "secret" not in repr(endpoint)
