"""`pocketvlm serve` as a process of its own, asked by the client that people have."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

import pocketvlm

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


class Serving(NamedTuple):
    process: subprocess.Popen[str]
    url: str

    def client(self, key: str = "secret") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def end(self) -> int:
        """Wait for the end; returns the status."""
        self.process.communicate(timeout=60)
        return self.process.returncode

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def start(*options: str) -> Serving:
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    said = json.loads(line)
    assert said["pid"] == process.pid
    return Serving(process, said["url"])


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    started = start("--api-key", "secret", "--served-model-name", "reader")
    yield started
    started.process.terminate()
    assert started.end() == 0


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with serving.client() as client:
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
    serving: Serving, key: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with serving.client(key) as client, pytest.raises(error):
        client.chat.completions.create(**{"model": "reader", "messages": TOTAL, **options})


def test_files_of_the_machine_are_not_opened(client: openai.OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": str(PICTURE)}}
    with pytest.raises(openai.BadRequestError, match="Paths are not accepted"):
        client.chat.completions.create(model="reader", messages=[{"role": "user", "content": [part]}])


def test_health_and_readiness_want_no_key_and_metrics_do(serving: Serving) -> None:
    assert serving.get("/health")[0] == serving.get("/ready")[0] == 200
    assert serving.get("/metrics")[0] == 401
    request = urllib.request.Request(f"{serving.url}/metrics", headers={"Authorization": "Bearer secret"})
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read().decode()
    assert "pocketvlm:num_requests_running" in text
    assert serving.get("/nothing")[0] == 404


def test_a_body_that_is_no_json_or_too_deep_is_400(serving: Serving) -> None:
    for body in (b"{", b"[" * 100_000, b'{"a": NaN}', b"\xff"):
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{serving.url}/v1/chat/completions", data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=60)
        with error.value as refused:
            assert refused.code == 400
            assert json.loads(refused.read())["error"]["type"] == "invalid_request_error"


def test_a_signal_lets_running_answers_end() -> None:
    serving = start()
    with ThreadPoolExecutor(1) as pool, serving.client() as client:
        stream = client.chat.completions.create(
            model="nano", messages=TOTAL, stream=True, max_tokens=200, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        serving.process.send_signal(signal.SIGTERM)
        rest = pool.submit(lambda: [chunk.choices[0].finish_reason for chunk in stream if chunk.choices])
        assert rest.result(60)[-1] == "length"
    assert serving.end() == 0


def test_an_address_that_is_taken_is_one_line(serving: Serving) -> None:
    port = serving.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "cannot listen" in done.stderr
    assert done.stderr.count("\n") == 1
