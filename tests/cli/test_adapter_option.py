"""`--adapter` of commands that answer many: it is asked, and results say whose they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.adapters import DECODER, write_random_adapter
from helpers.command import run
from helpers.serving import EXAMPLES

import pocketvlm
from pocketvlm.model.hub import resolve

PICTURE, QUESTION = EXAMPLES / "word.png", "What does it say?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_adapter(tmp_path / "adapter", resolve("nano").config, 1, DECODER, size=1.5)


def test_a_batch_is_answered_with_the_adapter(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [{"type": "image_url", "image_url": {"url": str(PICTURE)}}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(line)}\n", encoding="utf-8")
    command = ("batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--adapter", str(folder))
    status, _, err = run(capsys, *command)
    assert status == 0, err
    found = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    with pocketvlm.load("nano", adapter=folder) as vlm:
        expected = vlm.ask(PICTURE, QUESTION, temperature=0, max_tokens=12).text
    assert found["response"]["body"]["choices"][0]["message"]["content"] == expected


def test_results_of_an_evaluation_are_of_one_adapter(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("eval", "words", "--count", "2", "--out", str(tmp_path / "results.jsonl"), "--json")
    status, out, err = run(capsys, *command, "--adapter", str(folder))
    assert status == 0, err
    said = json.loads(out)
    assert said["adapter"] == str(folder)
    assert said["weights"] == resolve("nano").with_adapter(folder).fingerprint != resolve("nano").fingerprint
    status, out, _ = run(capsys, *command)
    assert (status, out) == (2, "")  # those of another model are not gone on with
    write_random_adapter(folder, resolve("nano").config, 2, DECODER)
    status, out, _ = run(capsys, *command, "--adapter", str(folder))
    assert (status, out) == (2, "")
