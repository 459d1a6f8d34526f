"""pocketvlm eval: the agreed line, resuming, endpoints, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.app import png
from helpers.endpoint_server import Server, completion, serving
from helpers.public_layouts import docvqa_published

from pocketvlm import load
from pocketvlm.cli import main

QUICK = ("--count", "3", "--downsample-mode", "4x", "--max-slice-nums", "1")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(("eval", *arguments))
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda _n, _r: completion("Oak", prompt_tokens=7, completion_tokens=1)) as started:
        yield started


def test_nano_is_measured_and_the_run_is_continued(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("words", "receipt", *QUICK, "--json", "--out", str(out))
    status, text, err = run(capsys, *arguments)
    assert (status, err, text.count("\n")) == (0, "", 1)
    line = json.loads(text)
    assert list(line["tasks"]) == ["words", "receipt"]
    for task in line["tasks"].values():
        assert (task["count"], task["failed"], task["interval_method"]) == (3, 0, "wilson")
        assert task["prompt_tokens"] > task["visual_tokens"] > 0
        low, high = task["interval"]
        assert 0 <= low <= task["score"] <= high <= 1
    assert line["options"] == {"temperature": 0.0, "downsample_mode": "4x", "max_slice_nums": 1}
    scores = [task["score"] for task in line["tasks"].values()]
    assert line["macro_average"] == pytest.approx(sum(scores) / 2, abs=1e-4)

    complete = out.read_bytes()
    out.write_bytes(complete[:-40])
    again = json.loads(run(capsys, *arguments, "--batch-size", "1")[1])
    assert [task["score"] for task in again["tasks"].values()] == scores
    assert out.read_bytes().count(b"\n") == complete.count(b"\n") == 7
    status, text, err = run(capsys, *arguments, "--downsample-mode", "16x")
    assert (status, text) == (2, "")
    assert "was measured with options" in err


def test_an_endpoint_is_measured(capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path) -> None:
    who = ("--endpoint", server.url, "--endpoint-model", "m")
    out = tmp_path / "out.jsonl"
    status, text, err = run(capsys, "words", *QUICK, *who, "--show-errors", "1", "--out", str(out))
    assert (status, err) == (0, "")
    assert "words/2026/0" in text
    assert "answered 'Oak'" in text
    for request in server.requests:
        assert request["model"] == "m"
        assert request["mm_processor_kwargs"] == {"downsample_mode": "4x", "max_slice_nums": 1}
        assert request["temperature"] == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert records[0]["settings"]["endpoint"] == server.url
    assert [(r["answer"], r["prompt_tokens"], r["visual_tokens"]) for r in records[1:]] == [("Oak", 7, None)] * 3


def test_a_run_that_was_killed_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, released = tmp_path / "out.jsonl", threading.Event()

    def script(number: int, _request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if number == 3:  # the fourth answer comes after the end of who asked
            released.wait(60)
        return completion("Oak")

    with serving(script) as server:
        who = ("--endpoint", server.url, "--endpoint-model", "m", "--concurrency", "1")
        arguments = ("one-word", "--count", "6", *who, "--out", str(out))
        with subprocess.Popen([sys.executable, "-m", "pocketvlm.cli", "eval", *arguments]) as process:
            try:
                while len(server.requests) < 4:
                    assert process.poll() is None
                    time.sleep(0.01)
            finally:
                process.kill()
                released.set()
        assert out.read_bytes().count(b"\n") == 1 + 3
        status, text, _ = run(capsys, *arguments, "--json")
    assert status == 0
    assert json.loads(text)["tasks"]["one-word"]["count"] == 6
    assert len(server.requests) == 4 + 3


def test_progress_is_for_terminals_only(
    capsys: pytest.CaptureFixture[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("one-word", *QUICK, "--endpoint", server.url, "--endpoint-model", "m", "--json")
    assert run(capsys, *arguments)[2] == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    status, text, err = run(capsys, *arguments)
    assert status == 0
    assert "3/3" in err
    assert json.loads(text)


def test_a_key_comes_from_the_environment_and_stays_out_of_the_results(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    who = ("--endpoint", server.url, "--endpoint-model", "m", "--api-key-env", "SOME_KEY")
    status, text, _ = run(capsys, "one-word", *QUICK, *who, "--json", "--out", str(tmp_path / "out.jsonl"))
    assert status == 0
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in text + (tmp_path / "out.jsonl").read_text()


def test_drawn_answers_use_the_seed_of_the_examples(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    who = ("--endpoint", server.url, "--endpoint-model", "m")
    run(capsys, "one-word", *QUICK, *who, "--temperature", "0.5", "--seed", "3")
    assert all((r["temperature"], r["seed"]) == (0.5, 3) for r in server.requests)


def test_an_endpoint_that_always_fails_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _n, _r: (400, {}, b'{"error": "no such option"}')) as server:
        arguments = ("one-word", "--count", "50", "--endpoint", server.url, "--endpoint-model", "m")
        status, text, err = run(capsys, *arguments)
    assert (status, text, err.count("\n")) == (1, "", 1)
    assert "no such option" in err


def test_the_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capsys, "--list", "--json")
    line = json.loads(text)
    assert status == 0
    assert {"words", "receipt"} <= set(line["tasks"])
    assert "docvqa" in line["sets"]
    assert run(capsys, "--list")[1].splitlines()[: len(line["tasks"])] == line["tasks"]


def mistakes(folder: Path) -> list[tuple[str, ...]]:
    (folder / "notes.txt").write_text("mine")
    url: Any = ("--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m")
    return [
        ("nope",),
        ("words", "--count", "0"),
        ("words", "--seed", "-1"),
        ("words", "--batch-size", "0"),
        ("words", "--show-errors", "-1"),
        ("words", "--downsample-mode", "8x"),
        ("words", "--top-p", "2"),
        ("words", "--model", "no-such-model"),
        ("words", "--device", "tpu"),
        ("words", "--out", str(folder)),
        ("words", "--out", str(folder / "notes.txt")),
        ("words", "--out", str(folder / "no" / "such" / "folder.jsonl")),
        ("words", "--endpoint-model", "m"),
        ("words", "--concurrency", "4"),
        ("words", "--endpoint", "http://127.0.0.1:9/v1"),
        ("words", "--endpoint", "nonsense", "--endpoint-model", "m"),
        ("words", *url, "--num-beams", "3"),
        ("words", *url, "--model", "nano"),
        ("words", *url, "--batch-size", "4"),
        ("words", *url, "--api-key-env", "NO_SUCH_VARIABLE"),
        ("words", *url, "--concurrency", "0"),
        ("words", *url, "--temperature", "-1"),
        ("words", *url, "--downsample-mode", "8x"),
        ("words", *url, "--out", str(folder / "new.jsonl"), "--timeout", "0"),
        ("--set", "docvqa"),
        ("--set", f"nope={folder}"),
        ("--set", f"docvqa={folder}/none"),
    ]


def test_every_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in mistakes(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), (arguments, status, out, err)
        assert err.startswith("pocketvlm eval: "), (arguments, err)
        assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"


def test_the_published_settings_are_one_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    docvqa_published(tmp_path)
    asked = ("--set", f"docvqa={tmp_path}", "--count", "2", "--json")
    plain, published = (json.loads(run(capsys, *asked, *more)[1]) for more in (QUICK[2:4], ("--published",)))
    assert published["published"] is True
    assert published["options"]["num_beams"] == 3
    # The small pictures were enlarged before they were cut into slices.
    assert published["tasks"]["docvqa"]["visual_tokens"] > plain["tasks"]["docvqa"]["visual_tokens"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--downsample-mode", "16x"), "--downsample-mode"),
        (("--num-beams", "5"), "--num-beams"),
        (("--endpoint", "http://127.0.0.1:1/v1", "--endpoint-model", "m"), "--endpoint"),
    ],
)
def test_the_published_settings_take_no_others(
    capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    status, text, err = run(capsys, "one-word", "--count", "1", "--published", *more)
    assert (status, text, err.count("\n")) == (2, "", 1)
    assert message in err


def test_what_is_no_ordinary_file_of_results_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    asked = ("one-word", *QUICK, "--endpoint", server.url, "--endpoint-model", "m", "--out")
    (tmp_path / "target").write_text("")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "deep").write_text("[" * 100_000 + "\n")
    (tmp_path / "zeros").write_bytes(bytes(5000))
    os.mkfifo(tmp_path / "pipe")
    before = sorted((path.name, path.lstat()) for path in tmp_path.iterdir())
    for out in ("link", "deep", "zeros", "pipe", "/dev/null", "/dev/zero", "/dev/full"):
        status, text, err = run(capsys, *asked, str(tmp_path / out))
        assert (status, text, err.count("\n")) == (2, "", 1), (out, err)
    after = sorted((path.name, path.lstat()) for path in tmp_path.iterdir())
    assert [(name, found.st_size, found.st_mode) for name, found in after] == [
        (name, found.st_size, found.st_mode) for name, found in before
    ]
    assert server.requests == []


def test_ctrl_c_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("one-word", *QUICK, "--endpoint", server.url, "--endpoint-model", "m")
    assert run(capsys, *asked, "--out", str(tmp_path / "out"))[0] == 0

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketvlm.evaluation.harness.evaluate", interrupted)
    status, text, err = run(capsys, *asked, "--out", str(tmp_path / "out"))
    assert (status, text, err.count("\n")) == (130, "", 1)
    assert f"{tmp_path / 'out'} keeps the answers so far" in err
    assert run(capsys, *asked) == (130, "", "\n")


@pytest.mark.parametrize("damage", [b"[" * 100_000, b"{}", b"null", b"\xff", b'{"task": "one-word"}'])
def test_a_damaged_line_is_named_and_kept(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path, damage: bytes
) -> None:
    asked = ("one-word", *QUICK, "--endpoint", server.url, "--endpoint-model", "m", "--out", str(tmp_path / "out"))
    assert run(capsys, *asked)[0] == 0
    first, *lines = (tmp_path / "out").read_bytes().splitlines(keepends=True)
    damaged = b"".join([first, damage + b"\n", *lines])
    (tmp_path / "out").write_bytes(damaged)
    status, text, err = run(capsys, *asked)
    assert (status, text, "line 2 of" in err, err.count("\n")) == (2, "", True, 1)
    assert (tmp_path / "out").read_bytes() == damaged


def test_a_full_disk_ends_a_run_with_status_1_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    limited = (
        "import resource, sys\n"
        "from pocketvlm.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "sys.exit(main(sys.argv[2:]))"
    )
    with serving(lambda _n, _r: completion("Oak")) as server:
        asked = ("eval", "one-word", "--count", "4", "--endpoint", server.url, "--endpoint-model", "m", "--json")
        for limit, status in (("10", 1), ("900", 1), ("100000", 0)):
            command = [sys.executable, "-c", limited, limit, *asked, "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr.count("\n")) == (status, status), done.stderr
            assert ("File too large" in done.stderr) == bool(status)
            assert out.exists() == (limit != "10")
    assert out.read_bytes().count(b"\n") == 1 + 4
    assert json.loads(done.stdout)["tasks"]["one-word"]["count"] == 4


def test_a_task_whose_examples_all_failed_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _n, _r: (400, {}, b'{"error": "no such option"}')) as failing:
        asked = ("--count", "2", "--endpoint", failing.url, "--endpoint-model", "m", "--json")
        status, text, err = run(capsys, "one-word", *asked)
    assert (status, json.loads(text)["tasks"]["one-word"]["failed"], err.count("\n")) == (1, 2, 1)
    assert "no such option" in err
    half = (completion("Oak"), (400, {}, b'{"error": "no such option"}'))
    with serving(lambda n, _r: half[n % 2]) as wavering:
        asked = ("--count", "2", "--endpoint", wavering.url, "--endpoint-model", "m", "--json")
        status, text, err = run(capsys, "one-word", *asked)
    assert (status, json.loads(text)["tasks"]["one-word"]["failed"], err) == (0, 1, "")


def write_samples(folder: Path, *lines: dict[str, Any] | str) -> str:
    path = folder / "mine.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return str(path)


def turns(*texts: str, **columns: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **columns}


def test_samples_of_ones_own_are_measured_as_they_would_be_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What nano says to a picture is right where the file expects that; several turns and options of a sample count."""
    (tmp_path / "a.png").write_bytes(png(112, 112, 3))
    conversation = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "a.png")}]}]
    conversation[0]["content"].append({"type": "text", "text": "What?"})
    with load() as vlm:
        options = {"temperature": 0.0, "max_tokens": 8}
        said = vlm.chat(conversation, downsample_mode="16x", **options).text
        before = [*conversation, {"role": "assistant", "content": "Oak"}, {"role": "user", "content": "And now?"}]
        later = vlm.chat(before, downsample_mode="4x", **options).text
    data = write_samples(
        tmp_path,
        turns("<image>What?", said, images=["a.png"]),
        turns("<image>What?", "Oak", "And now?", later, images=["a.png"], downsample_mode="4x"),
        turns("<image>What?", "Something else", images=["a.png"]),
        "{",
        turns("<image>What?", "Gone", images=["gone.png"]),
    )
    options = ("--data", data, "--downsample-mode", "16x", "--max-tokens", "8", "--json", "--show-errors", "9")
    status, text, _ = run(capsys, *options)
    task = json.loads(text)["tasks"][data]
    assert (status, task["count"], task["failed"], task["score"]) == (0, 5, 2, 0.4)
    wrong = {one["index"]: one for one in task["wrong"]}
    assert wrong[2]["answer"] == said
    assert "mine.jsonl:4" in wrong[3]["error"]
    assert "gone.png" in wrong[4]["error"]
    kept = ("--out", str(tmp_path / "out.jsonl"))
    again = json.loads(run(capsys, *options, *kept, "--metric", "contains")[1])
    assert "contains" in again["tasks"][data]["metrics"]
    status, _, err = run(capsys, *options, *kept, "--metric", "cer")
    assert (status, "was measured with metric" in err) == (2, True)


def test_places_are_compared_as_they_are_decoded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write_samples(tmp_path, *(turns("Where?", f"<ref>it</ref><box>1 2 3 {i}</box>") for i in (4, 5)))
    with serving(lambda _n, _r: completion("it1 2 3 4")) as server:
        who = ("--endpoint", server.url, "--endpoint-model", "m", "--json")
        for metric in ("strict", "exact"):
            assert json.loads(run(capsys, "--data", data, "--metric", metric, *who)[1])["macro_average"] == 0.5


def test_answers_to_a_file_that_was_edited_are_not_kept(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    who = ("--endpoint", server.url, "--endpoint-model", "m", "--json", "--out", str(tmp_path / "out.jsonl"))
    data = write_samples(tmp_path, turns("How?", "Oak"))
    assert run(capsys, "--data", data, *who)[0] == run(capsys, "--data", data, *who)[0] == 0
    write_samples(tmp_path, turns("How?", "Elm"))
    status, _, err = run(capsys, "--data", data, *who)
    assert (status, "was measured with data=" in err, len(server.requests)) == (2, True, 1)


def test_of_a_folder_the_split_for_tests_is_measured_and_named(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_samples(tmp_path / split, turns(f"{split}?", "Oak", odd=1))
    who = ("--endpoint", server.url, "--endpoint-model", "m", "--json")
    status, text, err = run(capsys, "--data", str(tmp_path), *who)
    assert (status, list(json.loads(text)["tasks"])) == (0, [f"{tmp_path}:test"])
    assert [request["messages"][0]["content"] for request in server.requests] == ["test?"]
    assert f"{tmp_path / 'test' / 'mine.jsonl'}: nothing is read from the columns odd\n" in err


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("iou", "<box>1 2 30 40</box>", "[[1, 2, 30, 40]]"),
        ("iou", "The <ref>cat</ref> is at <box>1 2 30 40</box>.", "at 1 2 30 40"),
        ("fields", '{"a": 1}', "a is 1"),
    ],
)
def test_answers_that_a_metric_cannot_read_are_named(
    metric: str, good: str, bad: str, capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    data = write_samples(tmp_path, turns("Where?", good), turns("Where?", bad))
    who = ("--endpoint", server.url, "--endpoint-model", "m", "--json", "--show-errors", "9")
    task = json.loads(run(capsys, "--data", data, "--metric", metric, *who)[1])["tasks"][data]
    assert (task["failed"], len(server.requests)) == (1, 1)
    (failed,) = (one for one in task["wrong"] if one["error"])
    assert failed["error"].startswith("mine.jsonl:2: its last answer is ")
    assert f"which the metric {metric} cannot read. Give another --metric." in failed["error"]


def test_an_endpoint_is_asked_a_whole_conversation(
    capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(30, 30, 3))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    line = turns("<image>What?", "No", "And now?", "Oak", images=["a.png"], downsample_mode="4x", tools=tools)
    who = ("--endpoint", server.url, "--endpoint-model", "m")
    status, text, _ = run(capsys, "--data", write_samples(tmp_path, line), *who, "--json")
    assert (status, json.loads(text)["macro_average"]) == (0, 1.0)
    [request] = server.requests
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    picture, question = request["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert question["text"].strip() == "What?"
    assert request["mm_processor_kwargs"] == {"downsample_mode": "4x"}
    assert request["tools"] == tools


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metric", "cer"), "--metric means nothing without --data"),
        (("--data", "gone.jsonl"), "gone.jsonl"),
        (("--set", "docvqa=docvqa", "--set", "docvqa=docvqa"), "--set docvqa is given twice"),
        (("words", "--data", "words"), "'words' is a task of the suite too"),
        (("--data", "mine.jsonl", "--published"), "--published is for the public sets"),
    ],
)
def test_data_that_cannot_be_measured_is_one_line(
    options: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    write_samples(tmp_path / "words", turns("How?", "So."))
    write_samples(tmp_path, turns("How?", "So."))
    docvqa_published(tmp_path / "docvqa")
    status, text, err = run(capsys, *options)
    assert (status, text, err.count("\n")) == (2, "", 1)
    assert words in err
