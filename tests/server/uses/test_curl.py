"""What people do with curl, against `pocketvlm serve`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import Serving
from helpers.uses import data_url

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is missing: apt-get install curl")
TOTAL = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_url("receipt.png")}},
            {"type": "text", "text": "What is the total?"},
        ],
    }
]


def curl(server: Serving, path: str, *options: str) -> str:
    command = [str(CURL), "-sS", "--fail-with-body", f"{server.url}{path}", "-H", "Authorization: Bearer secret"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 22), done.stderr
    return done.stdout


def post(server: Serving, path: str, body: Any, folder: Path, *options: str) -> str:
    file = folder / "body.json"
    file.write_text(json.dumps(body), encoding="utf-8")
    return curl(server, path, "-H", "Content-Type: application/json", "--data-binary", f"@{file}", *options)


def test_ask_about_a_picture(server: Serving, tmp_path: Path) -> None:
    answer = json.loads(post(server, "/v1/chat/completions", {"messages": TOTAL}, tmp_path))
    assert answer["choices"][0]["message"]["content"] == "11.60"


def test_follow_an_answer_as_it_is_written(server: Serving, tmp_path: Path) -> None:
    said = post(server, "/v1/chat/completions", {"messages": TOTAL, "stream": True}, tmp_path, "-N")
    *events, done = [line.removeprefix("data: ") for line in said.split("\n\n") if line]
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    assert (text, done) == ("11.60", "[DONE]")


def test_follow_a_response_by_its_events(server: Serving, tmp_path: Path) -> None:
    said = post(server, "/v1/responses", {"input": "Hello", "max_output_tokens": 3, "stream": True}, tmp_path, "-N")
    for block in filter(None, said.split("\n\n")):
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_a_body_without_its_type_is_read_too(server: Serving) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
    assert json.loads(curl(server, "/v1/chat/completions", "-d", body))["object"] == "chat.completion"


def test_count_tokens_and_look_at_the_server(server: Serving, tmp_path: Path) -> None:
    assert json.loads(post(server, "/tokenize", {"prompt": "Hello"}, tmp_path))["count"] > 0
    assert json.loads(curl(server, "/v1/models"))["data"][0]["id"] == "reader"
    assert json.loads(curl(server, "/health"))["status"] == "ok"
    assert "pocketvlm:request_success_total" in curl(server, "/metrics")


def test_learn_what_was_wrong(server: Serving, tmp_path: Path) -> None:
    said = post(server, "/v1/chat/completions", {"messages": TOTAL, "colour": "red"}, tmp_path)
    assert "'colour' is not supported" in json.loads(said)["error"]["message"]
