"""`pocketvlm batch`: every request is answered once, in order, whatever stopped the run in between."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pictures import encoded
from PIL import Image

from pocketvlm.api.answers import Answer, Usage
from pocketvlm.batch.requests import Lines, read_lines
from pocketvlm.batch.results import open_partial
from pocketvlm.batch.run import beside
from pocketvlm.cli import main
from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.processing.media.load_image import load_image


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
        ([line("a"), "", '{"custom_id": NaN}'], "line 3: not valid JSON"),
        (["[" * 100_000], "line 1: not valid JSON"),
        ([line("\ud800")], "line 1: custom_id is missing or no text"),
        ([{**line("a"), "body": []}], "line 1: body is missing"),
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


class StubVLM:
    """Answers as `VLM.as_completed` does, the last of what is under way first; every "lost" one is lost."""

    def __init__(self) -> None:
        self.progress: Any = None
        self.asked: list[tuple[Any, Any]] = []
        self.max_ahead = 0

    def as_completed(self, requests: Iterable[Any], *, ahead: int = 32) -> Iterator[tuple[int, Any]]:
        source, waiting = iter(requests), list[Any]()
        while True:
            while len(waiting) < ahead and (drawn := next(source, None)) is not None:
                waiting.append(drawn)
                self.max_ahead = max(self.max_ahead, len(waiting))
            if not waiting:
                return
            index, messages, options = waiting.pop()
            self.asked.append((messages, options))
            text = messages[0]["content"]
            if text == "stop":
                raise KeyboardInterrupt
            yield index, EngineError("inside") if text == "lost" else [Answer(text, Usage(5, 0, 2), {}, "stop")]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubVLM:
    vlm = StubVLM()
    monkeypatch.setattr("pocketvlm.cli.batch.loaded", lambda _args, **_: nullcontext(vlm))
    return vlm


def saying(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_no_more_are_drawn_than_may_be_under_way_and_the_order_is_kept(
    tmp_path: Path, stub: StubVLM, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [line(f"r{i}", messages=saying(f"{i}"), **({"top_k": 9} if i == 3 else {})) for i in range(20)]
    requests, out = write(tmp_path / "in.jsonl", made), tmp_path / "out.jsonl"
    status, text, _ = run(capsys, requests, out, "--concurrency", "3", "--top-k", "5", "--max-tokens", "7", "--json")
    assert (status, json.loads(text)["output_tokens"]) == (0, 40)
    assert stub.max_ahead == 3
    assert [messages for messages, _ in stub.asked] != [one["body"]["messages"] for one in made]
    found = [one["response"]["body"]["choices"][0]["message"]["content"] for one in read(out)]
    assert found == [f"{i}" for i in range(20)]
    # What the command says holds where a line does not.
    for messages, options in stub.asked:
        assert options["top_k"] == (9 if messages[0]["content"] == "3" else 5)
        assert options["max_tokens"] == 4


def test_a_lost_request_is_a_500_of_its_own(tmp_path: Path, stub: StubVLM, capsys: pytest.CaptureFixture[str]) -> None:
    requests = write(tmp_path / "in.jsonl", [line("a", messages=saying("lost")), line("b"), line("c", stream=True)])
    status, text, _ = run(capsys, requests, tmp_path / "out.jsonl")
    assert status == 1
    assert "3 requests: 1 succeeded, 2 failed" in text
    found = {one["custom_id"]: one["response"] for one in read(tmp_path / "out.jsonl")}
    assert {key: one["status_code"] for key, one in found.items()} == {"a": 500, "b": 200, "c": 400}
    assert found["a"]["body"]["error"].keys() == {"message", "type", "param", "code"}
    assert "stream" in found["c"]["body"]["error"]["message"]
    assert len(stub.asked) == 3  # the lost one once more


def test_ctrl_c_is_one_line_and_nothing_is_answered_twice(
    tmp_path: Path, stub: StubVLM, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [line(f"r{i}", messages=saying("stop" if i == 3 else f"{i}")) for i in range(5)]
    requests, out = write(tmp_path / "in.jsonl", made), tmp_path / "out.jsonl"
    status, text, err = run(capsys, requests, out, "--concurrency", "1")
    assert (status, text, err.count("\n")) == (130, "", 1)
    assert "3 of 5" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.partial"]
    whole = (tmp_path / "out.jsonl.partial").read_bytes()

    # Other options, or another input: refused, and what was there stays.
    assert run(capsys, requests, out, "--temperature", "1")[0] == 2
    write(requests, [*made[:4], line("r4", messages=saying("another"))])
    status, _, err = run(capsys, requests, out)
    assert (status, "other content" in err, err.count("\n")) == (2, True, 1)
    assert (tmp_path / "out.jsonl.partial").read_bytes() == whole

    write(requests, made)
    stub.asked.clear()
    assert run(capsys, requests, out, "--concurrency", "1")[0] == 130
    assert [messages[0]["content"] for messages, _ in stub.asked] == ["stop"]


def test_an_input_that_changes_while_it_runs_is_noticed(
    tmp_path: Path, stub: StubVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, out = write(tmp_path / "in.jsonl", [line("a"), line("b")]), tmp_path / "out.jsonl"

    def load(_args: Any, **_: Any) -> Any:
        write(requests, [line("b"), line("a")])
        return nullcontext(stub)

    monkeypatch.setattr("pocketvlm.cli.batch.loaded", load)
    status, _, err = run(capsys, requests, out)
    assert (status, "has changed" in err, err.count("\n")) == (2, True, 1)
    assert not out.exists()


def test_paths_are_looked_for_beside_the_input_and_urls_are_left_alone() -> None:
    def moved(kind: str, value: Any) -> Any:
        message = {"role": "user", "content": [{"type": kind, kind: value}]}
        return beside([message], Path("/folder"))[0]["content"][0][kind]

    assert moved("image", "a.png") == "/folder/a.png"
    assert moved("image", "/else/a.png") == "/else/a.png"
    assert moved("image_url", {"url": "a.png", "detail": "auto"}) == {"url": "/folder/a.png", "detail": "auto"}
    assert moved("video", ["a.png", "data:image/png;base64,AA"]) == ["/folder/a.png", "data:image/png;base64,AA"]
    for url in ("HTTPS://host/a.png", "http://host/a.png", "DATA:image/png;base64,AA"):
        assert moved("image_url", {"url": url}) == {"url": url}
    # What is no path is named as what it is, not looked for in the folder.
    base64 = b64encode(encoded(Image.new("RGB", (30, 30)))).decode()
    for other, named in (("file:///x.png", "a file: URL"), ("FILE:x.png", "a file: URL"), (base64, "bare base64")):
        assert moved("image", other) == other
        with pytest.raises(MediaError, match=named):
            load_image(moved("image", other))
    assert moved("text", "a.png") == "a.png"
    nested: Any = "a"
    for _ in range(5000):
        nested = [nested]
    assert moved("video", nested) == nested[:1]
    assert beside(["x", {"content": None}], Path("/folder")) == ["x", {"content": None}]


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    lines = read_lines(write(tmp_path / "in.jsonl", [line("a")]), "nano")
    partial = tmp_path / "out.jsonl.partial"
    with (
        open_partial(partial, lines, {}),
        pytest.raises(ConfigError, match="another run"),
        open_partial(partial, lines, {}),
    ):
        pass
    assert not partial.exists()


@pytest.mark.parametrize("content", ["not ours\n", "{}\n", '{"format": 1', "\0\0"])
def test_a_file_that_is_none_of_ours_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    lines = read_lines(write(tmp_path / "in.jsonl", [line("a")]), "nano")
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(content)
    with pytest.raises(ConfigError, match="not a file of results"), open_partial(partial, lines, {}):
        pass
    assert partial.read_text() == content


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


def test_what_is_no_ordinary_file_is_not_replaced_by_results(
    tmp_path: Path, stub: StubVLM, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = write(tmp_path / "in.jsonl", [line("a", messages=saying("a"))])
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    os.link(requests, tmp_path / "same")
    before = sorted((path.name, path.lstat()) for path in tmp_path.iterdir())
    for out in ("link", "dangling", "pipe", "same", "/dev/null", "/dev/full"):
        status, text, err = run(capsys, requests, tmp_path / out, "--overwrite")
        assert (status, text, err.count("\n")) == (2, "", 1), (out, err)
    assert sorted((path.name, path.lstat()) for path in tmp_path.iterdir()) == before
    assert stub.asked == []


def test_a_foreign_file_named_like_a_partial_one_is_left_alone(
    tmp_path: Path, stub: StubVLM, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = write(tmp_path / "in.jsonl", [line("a", messages=saying("a"))])
    (tmp_path / "target").write_text("")
    (tmp_path / "out.jsonl.partial").symlink_to("target")
    status, _, err = run(capsys, requests, tmp_path / "out.jsonl")
    assert (status, err.count("\n")) == (2, 1)
    assert (tmp_path / "out.jsonl.partial").is_symlink()
    (tmp_path / "out.jsonl.partial").unlink()
    for name in ("out.jsonl.tmp", "out.jsonl.partial.tmp"):  # as ours were called once
        (tmp_path / name).write_text("kept")
    assert run(capsys, requests, tmp_path / "out.jsonl")[0] == 0
    assert [(tmp_path / name).read_text() for name in ("out.jsonl.tmp", "out.jsonl.partial.tmp")] == ["kept"] * 2
    assert len(stub.asked) == 1


def test_a_file_that_came_while_it_ran_is_not_replaced(
    tmp_path: Path, stub: StubVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, out = write(tmp_path / "in.jsonl", [line("a", messages=saying("a"))]), tmp_path / "out.jsonl"

    def load(_args: Any, **_: Any) -> Any:
        out.write_text("another's")
        return nullcontext(stub)

    monkeypatch.setattr("pocketvlm.cli.batch.loaded", load)
    status, _, err = run(capsys, requests, out)
    assert (status, "already there" in err, out.read_text()) == (2, True, "another's")
    status, _, _ = run(capsys, requests, out, "--overwrite")
    assert (status, len(stub.asked), len(read(out))) == (0, 1, 1)


def test_requests_that_cannot_be_read_twice_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for given, said in (("pipe", "read twice"), ("/dev/zero", "ordinary file"), ("missing", "cannot be read")):
        status, _, err = run(capsys, tmp_path / given, tmp_path / "out.jsonl")
        assert (status, said in err, err.count("\n")) == (2, True, 1), err


def test_a_full_disk_keeps_the_results_and_the_same_command_goes_on(
    tmp_path: Path, stub: StubVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [line(f"r{i}", messages=saying(f"{i}")) for i in range(4)]
    requests, out = write(tmp_path / "in.jsonl", made), tmp_path / "out.jsonl"
    plain, lengths = resource.getrlimit(resource.RLIMIT_FSIZE), list[int]()

    def report(*_: Any) -> None:
        lengths.append(1)
        if len(lengths) == 2:  # from now on the file of results may not grow
            size = (tmp_path / "out.jsonl.partial").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, plain[1]))

    monkeypatch.setattr("pocketvlm.cli.batch.progress_bars", lambda: nullcontext(report))
    try:
        status, text, err = run(capsys, requests, out, "--concurrency", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, plain)
    assert (status, text, err.count("\n"), "File too large" in err) == (1, "", 1, True), err
    assert not out.exists()
    kept = (tmp_path / "out.jsonl.partial").read_bytes()
    assert kept.endswith(b"\n")
    asked = len(stub.asked)
    status, _, _ = run(capsys, requests, out, "--concurrency", "1")
    assert (status, len(read(out))) == (0, 4)
    assert len(stub.asked) - asked == 4 - (kept.count(b"\n") - 1)
