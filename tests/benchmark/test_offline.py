"""The benchmark: contenders really run, take turns, fail in one line; programs of others are read as they print."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketvlm.benchmark import ceilings, offline
from pocketvlm.benchmark.lines import LINES, line_of
from pocketvlm.benchmark.llama_cpp import LlamaCppContender
from pocketvlm.benchmark.offline import Result, compete, ratio
from pocketvlm.cli import main
from pocketvlm.errors import ConfigError


def test_runtimes_take_turns_on_every_line(seeded_checkpoint: Callable[[int], Path]) -> None:
    model = str(seeded_checkpoint(0))
    seen: list[tuple[str, int, int]] = []
    specs = [("pocketvlm", (model, "torch", "none")), ("pocketvlm", (model, "onnx", "int8"))]
    results = compete(specs, ["view", "prompt", "decode1", "decode8"], 2, lambda *at: seen.append(at))
    assert [r.name for r in results] == ["pocketvlm torch", "pocketvlm onnx int8"]
    for result in results:
        assert {name: len(times) for name, times in result.seconds.items()} == dict.fromkeys(
            ("view", "prompt", "decode1", "decode8"), 2
        )
        assert min(min(times) for times in result.seconds.values()) > 0
        assert 50e6 < result.peak_bytes < 4e9
        best = {"int8": 1e6, "fp32": 1e6, "read": 1e6}
        assert all(0 < (result.share(line, best) or 0) < 1 for line in result.seconds)
    units = [results[i].work[line].ceiling for i in (0, 1) for line in ("view", "prompt", "decode1")]
    assert units == ["fp32", "fp32", "read", "int8", "int8", "read"]
    assert seen == [(LINES[name].label, i, 2) for name in ("view", "prompt", "decode1", "decode8") for i in (1, 2)]


def test_the_peak_of_memory_is_known_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = offline.peak_bytes()
    monkeypatch.setattr("pocketvlm.machine.Path", lambda _name: tmp_path / "status")
    assert shown / 2 < offline.peak_bytes() < 100e9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_is_a_contender(seeded_checkpoint: Callable[[int], Path], dtype: str) -> None:
    (result,) = compete([("transformers", (str(seeded_checkpoint(0)), dtype))], ["view", "prompt", "decode1"], 1)
    assert (result.name, result.error) == (f"transformers {dtype}", "")
    assert set(result.seconds) == {"view", "prompt", "decode1"}


def test_a_contender_that_fails_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no model") as caught:
        compete([("pocketvlm", ("no-such-model", "torch", "none"))], ["view"], 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no contender"):
        compete([("other", ())], ["view"], 1)


def test_the_others_go_on_when_one_fails(
    seeded_checkpoint: Callable[[int], Path], tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be made, one whose program crashes, and one whose own process does."""
    (tools / "llama-bench").write_text("#!/bin/sh\nkill -ILL $$\n")
    ours = ("pocketvlm", (str(seeded_checkpoint(0)), "torch", "none"))
    specs = [("pocketvlm", (str(tmp_path), "torch", "none")), ours, ("llama.cpp", (tools / "model.gguf", None, 1))]
    broken, fine, crashed = compete([*specs], ["prompt", "decode1"], 2)
    assert {line: len(times) for line, times in fine.seconds.items()} == {"prompt": 2, "decode1": 2}
    assert fine.error == ""
    assert broken.error
    assert "llama-bench failed: it ended by SIGILL" in crashed.error
    assert broken.seconds == crashed.seconds == {}
    run = offline.Worker.run

    def killed(worker: offline.Worker, line: str) -> float | None:
        if worker.result.seconds:
            assert worker.process.pid is not None
            os.kill(worker.process.pid, signal.SIGILL)
            worker.process.join()
        return run(worker, line)

    # One that does none of the lines is no reason to have nothing to show.
    with pytest.raises(ConfigError):
        compete([specs[0], ("llama.cpp", (tools / "model.gguf", None, 1))], ["view"], 1)
    monkeypatch.setattr(offline.Worker, "run", killed)
    with pytest.raises(ConfigError, match="ended by SIGILL"):
        compete([ours], ["prompt"], 2)


def test_ratios_are_of_the_same_round() -> None:
    slow, fast = Result("slow", {"view": [2.0, 8.0, 4.0]}), Result("fast", {"view": [1.0, 2.0, 1.0]})
    assert ratio(fast, slow, "view") == 4.0
    assert ratio(fast, slow, "image") is None


def test_ceilings_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", 128)
    monkeypatch.setattr(ceilings, "GIGABYTE", 2**20)
    found = ceilings.measure()
    assert set(found) == {"fp32", "int8", "read"}
    assert min(found.values()) > 0
    monkeypatch.setattr("pocketvlm.kernels.onnx_ops.library.compiled", lambda: None)  # as where no compiler is
    found = ceilings.measure()
    assert set(found) == {"fp32", "int8", "read"}
    assert min(found.values()) > 0


def test_growth_measures_every_size(
    seeded_checkpoint: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    small = {"views": ("views-1", "views-3"), "batch": ("decode3",)}
    monkeypatch.setattr("pocketvlm.benchmark.growth.SERIES", small)
    model = str(seeded_checkpoint(0))
    command = ["bench", "growth", "--model", model, "--runs", "onnx:none", "--rounds", "1"]
    assert main([*command, "--json", "--plot", str(tmp_path / "growth.png")]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [p["line"] for p in points] == [line for lines in small.values() for line in lines]
    assert min(p["seconds"] for p in points) > 0
    assert (tmp_path / "growth.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["views-0", "prompt", "views-4", "decode16", "other", "prompt-", "decode"])
def test_lines_of_any_size_have_names(name: str) -> None:
    if name in ("prompt", "views-4", "decode16"):
        assert line_of(name).name == name
    else:
        with pytest.raises(ConfigError):
            line_of(name)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that print what those of llama.cpp print."""
    outputs = {
        "llama-bench": 'ggml: loaded\n[{"n_prompt": 700, "avg_ns": 7500000000, "avg_ts": 93.3}]\n',
        "llama-batched-bench": (
            "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n"
            "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|\n"
            "|    64 |     16 |    8 |    640 |    5.500 |    93.09 |    4.400 |    29.09 |    9.900 |    64.65 |\n"
        ),
        "llama-mtmd-cli": "encoding image slice...\nimage slice encoded in 3700 ms\nimage slice encoded in 300 ms\n",
    }
    for name, text in outputs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return tmp_path


def test_the_times_that_llama_cpp_prints_are_taken(tools: Path) -> None:
    contender = LlamaCppContender(tools / "model.gguf", tools / "model.gguf", 2)
    seconds = {}
    for line in LINES:
        function = contender.prepare(line)
        assert function is not None
        seconds[line] = function()
    assert seconds == {"view": 4.0, "image": 4.0, "prompt": 7.5, "decode1": 7.5, "decode8": 4.4}


def test_lines_that_llama_cpp_has_no_tool_for_are_left_out(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools / "llama-batched-bench").unlink()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    contender = LlamaCppContender(tools / "model.gguf", None, 2)
    assert [line for line in LINES if contender.prepare(line)] == ["prompt", "decode1"]


def test_a_tool_that_fails_is_one_line(tools: Path) -> None:
    (tools / "llama-bench").write_text("#!/bin/sh\necho 'error: unknown model architecture' >&2\nexit 1\n")
    function = LlamaCppContender(tools / "model.gguf", None, 2).prepare("prompt")
    assert function is not None
    with pytest.raises(ConfigError, match="llama-bench failed: error: unknown model architecture"):
        function()


def test_the_command_prints_one_json_line(
    capsys: pytest.CaptureFixture[str],
    seeded_checkpoint: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda: {"fp32": 1.0, "read": 1.0, "int8": 1.0})
    seen, real = [], offline.compete
    monkeypatch.setattr(offline, "compete", lambda *arguments: seen.append(real(*arguments)) or seen[0])
    model = str(seeded_checkpoint(0))
    command = ["bench", "offline", "--model", model, "--runs", "torch", "--lines", "prompt", "--rounds", "1"]
    assert main([*command, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["results"][0]["rates"]["prompt"] > 0
    seen[0].append(Result("other", error="ended by SIGILL"))
    monkeypatch.setattr(offline, "compete", lambda *_: seen[0])  # in words, the same results, and one that failed
    for found in (
        {"fp32": 1.0, "read": 1.0, "int8": 1.0},
        {"fp32": 1.0, "read": 1.0},
    ):  # with a ceiling for int8, without
        monkeypatch.setattr(ceilings, "measure", lambda found=found: found)
        assert main(command) == 1
        shown = capsys.readouterr().out
        assert "pocketvlm torch" in shown
        assert "other failed: ended by SIGILL" in shown


@pytest.mark.parametrize(
    "wrong",
    [
        ("--rounds", "0"),
        ("--runs", "tensorrt"),
        ("--runs", "torch:int8"),
        ("--runs", "onnx:int3"),
        ("--against", "llama.cpp"),
        ("--gguf", "x.gguf"),
        ("--against", "llama.cpp", "--gguf", "no-such.gguf"),
        ("--against", "llama.cpp", "--gguf", __file__, "--mmproj", "no-such.gguf"),
        ("--model", "no-such"),
        ("--lines", "other"),
        ("--plot", "x.png"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, ...]
) -> None:
    monkeypatch.setattr(offline, "compete", None)  # it is said before anything is loaded
    try:
        status = main(["bench", "offline", *wrong])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_a_worker_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = offline.Worker.__new__(offline.Worker)
    worker.pipe, other = multiprocessing.Pipe()
    worker.process = multiprocessing.get_context("spawn").Process(target=print)
    worker.process.start()
    other.close()
    with pytest.raises(ConfigError, match="ended by itself"):
        worker._receive("seconds")
    monkeypatch.undo()
