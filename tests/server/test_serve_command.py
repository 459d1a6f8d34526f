"""`pocketvlm serve` as a process of its own, asked by the client that people have."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.command import run
from helpers.serving import NO_DECODERS, Serving, start

import pocketvlm
from pocketvlm.server.run import url_of

PICTURE = Path(__file__).parents[2] / "examples" / "receipt.png"
TOTAL: list[Any] = [
    {
        "role": "user",
        "content": [
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"},
            },
            {"type": "text", "text": "What is the total?"},
        ],
    }
]


def client_of(server: Serving, key: str = "secret") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def test_an_answer_is_that_of_the_model_itself(client: openai.OpenAI) -> None:
    expected = pocketvlm.load().ask(PICTURE, "What is the total?")
    found = client.chat.completions.create(model="reader", messages=TOTAL)
    assert found.choices[0].message.content == expected.text
    assert found.usage is not None
    assert found.usage.completion_tokens == expected.usage.completion_tokens


def test_a_stream_joined_is_the_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="reader", messages=TOTAL)
    chunks = list(
        client.chat.completions.create(
            model="reader", messages=TOTAL, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None


def test_many_at_once_are_answered_as_one_alone(client: openai.OpenAI) -> None:
    alone = client.chat.completions.create(model="reader", messages=TOTAL).choices[0].message.content
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.chat.completions.create(model="reader", messages=TOTAL), range(12)))
    assert {one.choices[0].message.content for one in found} == {alone}


@pytest.mark.parametrize(
    ("key", "options", "error"),
    [
        ("wrong", {}, openai.AuthenticationError),
        ("secret", {"model": "gpt-5"}, openai.NotFoundError),
        ("secret", {"extra_body": {"colour": "red"}}, openai.BadRequestError),
        ("secret", {"n": 1000}, openai.BadRequestError),
        (
            "secret",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/hostname"}}]}]},
            openai.BadRequestError,
        ),
        ("secret", {"messages": []}, openai.BadRequestError),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    server: Serving, key: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with client_of(server, key) as client, pytest.raises(error):
        client.chat.completions.create(**{"model": "reader", "messages": TOTAL, **options})


def test_files_of_the_machine_are_not_opened(client: openai.OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": str(PICTURE)}}
    with pytest.raises(openai.BadRequestError, match="Paths are not accepted"):
        client.chat.completions.create(model="reader", messages=[{"role": "user", "content": [part]}])


def test_health_and_readiness_want_no_key_and_metrics_do(server: Serving) -> None:
    assert server.ask("/health", key="")[0] == server.ask("/ready", key="")[0] == 200
    assert server.ask("/metrics", key="")[0] == 401
    assert "pocketvlm:num_requests_running" in server.ask("/metrics")[1]
    assert server.ask("/nothing", key="")[0] == 404


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b'{"a": NaN}', b"\xff"])
def test_a_body_that_is_no_json_or_too_deep_is_400(server: Serving, body: bytes) -> None:
    status, text, _ = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


def test_a_signal_lets_running_answers_end() -> None:
    server = start(*NO_DECODERS)
    with ThreadPoolExecutor(1) as pool, client_of(server) as client:
        stream = client.chat.completions.create(
            model="nano", messages=TOTAL, stream=True, max_tokens=200, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        rest = pool.submit(lambda: [chunk.choices[0].finish_reason for chunk in stream if chunk.choices])
        assert rest.result(60)[-1] == "length"
    assert server.end() == 0


def test_an_address_that_is_taken_is_one_line(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "serve", "--port", server.url.rpartition(":")[2])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "cannot listen" in err


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fd00::2", "http://[fd00::2]:80"),
    ],
)
def test_the_url_that_is_told_can_be_opened(host: str, url: str) -> None:
    assert url_of(host, 80) == url


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up as Linux shows them")
def test_ctrl_c_while_it_starts_shows_no_traceback_of_any_process() -> None:
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def names() -> list[bytes]:
            return [Path(f"/proc/{child}/cmdline").read_bytes() for child in children.read_text().split()]

        while not any(b"forkserver" in name for name in names()):
            time.sleep(0.01)
        time.sleep(0.2)  # into its imports
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    # By the signal itself where Python was within an `exec` when it came; shells say 130 of both.
    assert process.returncode in (130, -signal.SIGINT)
    assert errors.strip() == ""
