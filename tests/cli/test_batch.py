"""`pocketvlm batch`: every request is answered once, in order, whatever stopped the run in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.cli import main
from pocketvlm.cli.batch_files import Lines, open_partial, read_lines


@pytest.fixture(scope="module")
def model(seeded_checkpoint: Callable[[int], Path]) -> str:
    return str(seeded_checkpoint(0))


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text().splitlines()]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    try:
        status = main(["batch", *map(str, arguments)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_answers_come_in_the_order_of_the_requests_with_errors_in_their_places(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}]
    missing = [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}]
    requests = write(
        tmp_path / "in.jsonl",
        [
            line("long", max_tokens=60, ignore_eos=True),
            line("picture", messages=picture),
            line("missing", messages=missing),
            line("field", audio={}),
            line("two", n=2),
        ],
    )
    out = tmp_path / "out.jsonl"
    status, text, _ = run(capsys, requests, out, "--model", model, "--json")
    summary = json.loads(text)
    assert status == 1
    assert (summary["requests"], summary["succeeded"], summary["failed"]) == (5, 3, 2)
    found = read(out)
    assert [one["custom_id"] for one in found] == ["long", "picture", "missing", "field", "two"]
    assert [one["response"]["status_code"] for one in found] == [200, 200, 400, 400, 200]
    assert found[1]["response"]["body"]["usage"]["visual_tokens"] > 0
    assert "b.png" in found[2]["response"]["body"]["error"]["message"]
    assert "audio" in found[3]["response"]["body"]["error"]["message"]
    assert [choice["index"] for choice in found[4]["response"]["body"]["choices"]] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "in.jsonl", "out.jsonl"]
    status, _, err = run(capsys, requests, out, "--model", model)
    assert (status, "already there" in err) == (2, True)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["{"], "line 1: not valid JSON"),
        ([line("a"), line("a")], "line 2: custom_id 'a' is that of line 1"),
        ([{**line("a"), "url": "/v1/embeddings"}], "expected '/v1/chat/completions'"),
        ([{**line("a"), "method": "GET"}], "expected 'POST'"),
        ([{**line("a"), "extra": 1}], "no field 'extra'"),
        ([line("a", model="gpt-9")], "model is 'gpt-9'"),
        ([], "holds no requests"),
    ],
)
def test_a_file_with_a_bad_line_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[Any], complaint: str
) -> None:
    requests = write(tmp_path / "in.jsonl", lines)
    status, _, err = run(capsys, requests, tmp_path / "out.jsonl")
    assert status == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def result(custom_id: str, status: int = 200) -> dict[str, Any]:
    body = {"usage": {"completion_tokens": 3}}
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}


def test_a_run_goes_on_from_wherever_its_file_was_cut(tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", [line(f"r{i}") for i in range(4)])
    lines: Lines = read_lines(requests, "nano")
    settings = {"input": lines.digest}
    partial = tmp_path / "out.jsonl.partial"
    with open_partial(partial, lines, settings) as results:
        header = partial.stat().st_size
        for i in (2, 0, 3):
            results.add(i, result(f"r{i}"))
    whole = partial.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        partial.write_bytes(whole[:size])
        with open_partial(partial, lines, settings) as results:
            kept = sum(end <= size for end in ends[1:])
            assert results.done == kept
            assert [results.has(i) for i in (2, 0, 3, 1)] == [n < kept for n in range(3)] + [False]
            for i in range(4):
                if not results.has(i):
                    results.add(i, result(f"r{i}"))
            results.write(tmp_path / "out.jsonl")
        assert [one["custom_id"] for one in read(tmp_path / "out.jsonl")] == ["r0", "r1", "r2", "r3"]
        assert not partial.exists()
    assert header == ends[0]


def test_results_of_another_input_are_not_taken_up(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, out = write(tmp_path / "in.jsonl", [line("a"), line("b")]), tmp_path / "out.jsonl"
    lines = read_lines(requests, model)
    with open_partial(tmp_path / "out.jsonl.partial", lines, {"input": "another"}) as results:
        results.add(0, result("a"))
    status, _, err = run(capsys, requests, out, "--model", model)
    assert status == 2
    assert "was begun with" in err
    assert (tmp_path / "out.jsonl.partial").exists()


def test_a_killed_run_goes_on_and_answers_as_an_uninterrupted_one(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        line(f"r{i}", messages=[{"role": "user", "content": f"Question {i}"}], max_tokens=30, ignore_eos=True)
        for i in range(30)
    ]
    requests, out = write(tmp_path / "in.jsonl", made), tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    command = [sys.executable, "-m", "pocketvlm.cli", "batch", str(requests), str(out), "--model", model]
    process = subprocess.Popen([*command, "--concurrency", "2"], stderr=subprocess.PIPE)
    began = time.monotonic()
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 4):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    status, text, _ = run(capsys, requests, out, "--model", model, "--json")
    assert status == 0
    assert 4 <= json.loads(text)["resumed"] < 30
    status, _, _ = run(capsys, requests, tmp_path / "whole.jsonl", "--model", model)
    assert status == 0

    def texts(path: Path) -> list[str]:
        return [one["response"]["body"]["choices"][0]["message"]["content"] for one in read(path)]

    assert texts(out) == texts(tmp_path / "whole.jsonl")
