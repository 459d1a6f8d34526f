"""POST /v1/view_plan and timings at the end of a stream: what the page shows, for every client."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import Serving

from pocketvlm.model.hub import resolve
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.expansion import Units
from pocketvlm.protocol.view_plan import parse_view_plan
from pocketvlm.server.view_plan import plan_pictures

EXAMPLES = Path(__file__).parents[2] / "examples"


def data_url(name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode((EXAMPLES / name).read_bytes()).decode()}"


def ask(server: Serving, path: str, body: Any) -> tuple[int, Any]:
    status, text, _ = server.ask(path, body)
    return status, json.loads(text)


def chunks_of(server: Serving, stream_options: Any, **options: Any) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": data_url("receipt.png")}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is the total?"}]}]
    body = {"model": "reader", "messages": messages, "stream": True, "stream_options": stream_options, **options}
    _, text, _ = server.ask("/v1/chat/completions", body)
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("mode", ["16x", "4x", "auto"])
def test_a_plan_is_what_an_answer_uses(server: Serving, mode: str) -> None:
    how = {"downsample_mode": mode, "max_slice_nums": 6}
    status, found = ask(
        server, "/v1/view_plan", {"images": [data_url("receipt.png")], "mm_processor_kwargs": how, "model": "reader"}
    )
    assert status == 200
    (plan,) = found["images"][0]["plans"]
    options = {"include_usage": True, "include_timings": True}
    last = chunks_of(server, options, mm_processor_kwargs=how)[-1]
    assert last["usage"]["visual_tokens"] == plan["visual_tokens"]
    assert last["timings"]["views"] == [{k: v for k, v in view.items() if k != "box"} for view in plan["views"]]
    stages = {"preprocess", "queue", "encode", "prefill", "decode", "total"}
    assert {name for name, value in last["timings"].items() if isinstance(value, float)} == stages


def test_all_modes_of_several_pictures_come_at_once(server: Serving) -> None:
    images = [data_url("receipt.png"), data_url("chart.png")]
    status, found = ask(server, "/v1/view_plan", {"images": images, "downsample_modes": ["4x", "16x", "auto"]})
    assert status == 200
    assert [(image["width"], image["height"]) for image in found["images"]] == [(280, 392), (224, 224)]
    for image in found["images"]:
        assert [plan["downsample_mode"] for plan in image["plans"]] == ["4x", "16x", "auto"]
    own = ask(server, "/v1/view_plan", {"images": images})[1]["images"]
    about = ask(server, "/v1/models", None)[1]["data"][0]["pocketvlm"]
    assert {plan["downsample_mode"] for image in own for plan in image["plans"]} == {about["downsample_mode"]}


def test_a_stream_has_timings_only_where_they_were_asked_for(server: Serving) -> None:
    plain = chunks_of(server, {})
    timed = chunks_of(server, {"include_timings": True})
    assert not [chunk for chunk in plain if "timings" in chunk or "usage" in chunk or not chunk["choices"]]
    assert timed[-1]["choices"] == []
    assert "usage" not in timed[-1]
    assert [chunk["choices"] for chunk in timed[:-1]] == [chunk["choices"] for chunk in plain]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"images": ["data:image/png;base64,aGVsbG8="]}, "images[0]: The data: URL"),
        ({"images": [data_url("word.png"), "/etc/hostname"]}, "images[1]: Expected a data: or http(s) URL"),
        ({"images": [data_url("word.png")] * 17}, "17 pictures"),
        ({"images": [data_url("word.png")], "colour": 1}, "colour"),
        ({"images": ["http://127.0.0.1:9/a.png"]}, "images[0]"),
    ],
)
def test_what_cannot_be_planned_is_refused(server: Serving, body: Any, message: str) -> None:
    status, found = ask(server, "/v1/view_plan", body)
    assert status == 400
    assert message in found["error"]["message"]


def test_a_plan_wants_a_key_and_a_model_that_is_there(server: Serving) -> None:
    assert server.ask("/v1/view_plan", {"images": ["a"]}, key="")[0] == 401
    assert ask(server, "/v1/view_plan", {"images": ["a"], "model": "other"})[0] == 404


def test_pictures_of_plans_are_decoded_where_those_of_chats_are() -> None:
    processor = Processor.from_directory(resolve("nano").path)
    tasks = []

    def encode(task: MediaTask) -> list[Units]:
        tasks.append(task)
        return encode_media(task)

    processor.encode = encode
    asked = parse_view_plan({"images": [data_url("receipt.png")] * 2, "downsample_modes": ["16x", "4x", "auto"]})
    plans = plan_pictures(processor, asked)
    assert [len(task.parts) for task in tasks] == [2]  # once, however many modes
    for mode in ("16x", "4x", "auto"):
        alone = parse_view_plan({"images": [data_url("receipt.png")], "downsample_modes": [mode]})
        assert plan_pictures(processor, alone)[0][mode] == plans[0][mode] == plans[1][mode]
