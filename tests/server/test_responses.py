"""POST /v1/responses: errors in the words of its body, what was thought is counted, and a stream that fails says so."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from helpers.app import App, data_url, new_vlm, run

from pocketvlm.api.answers import Answer, Usage
from pocketvlm.api.choice import REASONING_ENDS
from pocketvlm.protocol.responses_request import LOGPROBS
from pocketvlm.server.responses import _usage

PICTURE = {"type": "input_image", "image_url": data_url(b"no picture")}


async def ask(app: App, **fields: Any) -> httpx.Response:
    return await app.client.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 3, **fields})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(block.partition("data: ")[2]) for block in response.text.split("\n\n") if block]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_output_tokens": 10**7}, "max_output_tokens=10000000"),
        ({"input": [{"role": "user", "content": [PICTURE]}]}, "input[0].content[0]"),
        ({"instructions": "Look.", "input": [{"role": "user", "content": [PICTURE]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": [PICTURE]}]},
            "input[1].content[0]",
        ),
    ],
)
def test_errors_have_the_names_of_the_body(fields: dict[str, Any], words: str) -> None:
    async def refused() -> httpx.Response:
        async with await new_vlm() as vlm:
            return await ask(App(vlm), **fields)

    response = run(refused())
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    assert words in message
    assert "messages[" not in message


def test_a_stream_says_what_the_whole_says_and_logprobs_only_where_they_were_asked_for() -> None:
    async def asked() -> list[tuple[dict[str, Any], dict[str, Any]]]:
        async with await new_vlm() as vlm:
            app = App(vlm)
            return [
                ((await ask(app, **more)).json(), events_of(await ask(app, stream=True, **more))[-1]["response"])
                for more in ({}, {"include": [LOGPROBS]})
            ]

    for number, (whole, streamed) in enumerate(run(asked())):
        texts = [one["output"][0]["content"][0] for one in (whole, streamed)]
        assert texts[0] == texts[1]
        assert (len(texts[0]["logprobs"]) > 0) == (number == 1)
        assert whole["usage"]["output_tokens"] == streamed["usage"]["output_tokens"] == 3


@pytest.mark.parametrize(("ids", "thought"), [((5, 6, 9, 7), 3), ((5, 6), 2)])
def test_tokens_of_reasoning_are_those_up_to_its_end(ids: tuple[int, ...], thought: int) -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=len(ids), visual_tokens=0)
    tokenizer = SimpleNamespace(control_tokens={REASONING_ENDS: 9})
    for reasoning, expected in (("Hm.", thought), (None, 0)):
        answer = Answer("a", usage, {}, "stop", reasoning=reasoning, token_ids=ids)
        job: Any = SimpleNamespace(answers=lambda answer=answer: [answer], tokenizer=tokenizer)
        assert _usage(job)["output_tokens_details"] == {"reasoning_tokens": expected}


def test_a_stream_that_fails_ends_with_that_and_tells_the_log_alone_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failed() -> list[dict[str, Any]]:
        async with await new_vlm() as vlm:
            app = App(vlm)
            step, steps = vlm.engine.engine.executor.run, list[int]()

            def fail(plan: Any) -> Any:
                steps.append(1)
                if len(steps) > 2:
                    raise RuntimeError("secret words of a library")
                return step(plan)

            monkeypatch.setattr(vlm.engine.engine.executor, "run", fail)
            return events_of(await ask(app, stream=True, max_output_tokens=50, ignore_eos=True))

    with caplog.at_level(logging.ERROR):
        *_, last = run(failed())
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "secret" not in json.dumps(last)
    assert [record.getMessage() for record in caplog.records if record.name == "pocketvlm.server.errors"]


TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        '"tools": [{**, "output_schema": {"maximum": 1e999}}]',
        '"tools": [{**, "output_schema": {"title": "\\ud800"}}]',
        '"tools": [{**, "allowed_callers": ["\\udfff"]}]',
        '"tools": [{**, "defer_loading": 1e999}], "tool_choice": "none"',
    ],
)
def test_what_a_response_could_not_say_again_is_refused(fields: str, stream: bool) -> None:
    body = fields.replace("**", json.dumps(TOOL)[1:-1])

    async def refused() -> httpx.Response:
        async with await new_vlm() as vlm:
            text = f'{{"input": "Hello", "max_output_tokens": 3, "stream": {json.dumps(stream)}, {body}}}'
            return await App(vlm).client.post("/v1/responses", content=text)

    response = run(refused())
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("tools holds ")
