"""The command line: JSON lines as agreed, exit status 2 and one line for every mistake, nothing half-written."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.command import run
from PIL import Image

import pocketvlm
from pocketvlm.api.answers import Answer, Delta, Usage
from pocketvlm.cli import COMMANDS, chat, common, console
from pocketvlm.cli.answer_printer import AnswerPrinter
from pocketvlm.cli.common import loaded
from pocketvlm.kernels.onnx_ops import library


@pytest.fixture(scope="module")
def model(seeded_checkpoint: Callable[[int], Path]) -> str:
    return str(seeded_checkpoint(1))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (500, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_ask_prints_the_agreed_json_line(capsys: pytest.CaptureFixture[str], model: str, image: str) -> None:
    arguments = ("ask", image, "What is it?", "--model", model, "--json", "--max-tokens", "5", "--temperature", "0")
    status, out, _ = run(capsys, *arguments)
    line = json.loads(out)
    assert status == 0
    assert out.count("\n") == 1
    assert set(line) == {"text", "usage", "timing", "finish_reason"}
    assert set(line["usage"]) == {"prompt_tokens", "visual_tokens", "completion_tokens"}
    assert line["usage"]["completion_tokens"] <= 5
    as_options = ("ask", "--image", image, "--prompt", "What is it?", *arguments[3:])
    again = json.loads(run(capsys, *as_options)[1])
    assert (again["text"], again["usage"]) == (line["text"], line["usage"])


def test_ask_passes_picture_options_on(capsys: pytest.CaptureFixture[str], model: str, image: str) -> None:
    def tokens(*options: str) -> int:
        arguments = ("ask", image, "Hm?", "--model", model, "--json", "--max-tokens", "1", *options)
        return int(json.loads(run(capsys, *arguments)[1])["usage"]["visual_tokens"])

    assert tokens("--downsample-mode", "4x") > 3 * tokens()
    assert tokens("--max-slice-nums", "1") == pocketvlm.plan(500, 640, max_slice_nums=1).visual_tokens < tokens()


def test_a_model_is_exported_and_asked(
    capsys: pytest.CaptureFixture[str], model: str, image: str, tmp_path: Path
) -> None:
    bundle = str(tmp_path / "bundle")
    status, out, _ = run(capsys, "export", "onnx", bundle, "--model", model, "--quantization", "none", "--json")
    line = json.loads(out)
    assert status == 0
    assert line["bytes"] == sum(line["files"].values()) > 0
    question = ("ask", image, "What is it?", "--json", "--max-tokens", "5", "--temperature", "0")
    sides = (("--model", model, "--runtime", "torch"), ("--model", bundle))
    answers = [json.loads(run(capsys, *question, *side)[1])["text"] for side in sides]
    assert answers[0] == answers[1]
    assert json.loads(run(capsys, "info", "--model", bundle, "--json")[1])["runs_with"].startswith("ONNX Runtime")
    for wrong in (
        (bundle,),
        (str(tmp_path / "new"), "--quantization", "int3"),
        (str(tmp_path / "new"), "--model", "x"),
        (str(tmp_path / "new"), "--quantization", "none", "--operators", "compiled"),
    ):
        status, out, err = run(capsys, "export", "onnx", *wrong)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "new").exists()


def test_operators_are_compiled_where_that_is_possible(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ("export", "onnx", str(tmp_path / "bundle"), "--operators", "compiled")
    status, out, err = run(capsys, *export)
    if library.compiled():
        assert status == 0
        assert "compiled operators" in out
        about = json.loads(run(capsys, "info", "--model", str(tmp_path / "bundle"), "--json")[1])
        assert about["runs_with"].endswith("compiled operators")
    monkeypatch.setattr(library, "compiled", lambda: None)
    status, out, err = run(capsys, *export[:2], str(tmp_path / "new"), *export[3:])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "standard ones" in err
    assert not (tmp_path / "new").exists()
    status, out, err = run(capsys, "export", "gguf", *export[2:])
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_ask_searches_with_beams(capsys: pytest.CaptureFixture[str], model: str, image: str) -> None:
    arguments = ("ask", image, "What is it?", "--model", model, "--json", "--max-tokens", "4", "--num-beams", "3")
    status, out, _ = run(capsys, *arguments, "--length-penalty", "0.5")
    expected = pocketvlm.load(model).ask(image, "What is it?", max_tokens=4, num_beams=3, length_penalty=0.5)
    assert status == 0
    assert json.loads(out)["text"] == expected.text


def test_trace_prints_and_saves_every_intermediate(
    capsys: pytest.CaptureFixture[str], model: str, image: str, tmp_path: Path
) -> None:
    out_file = tmp_path / "trace.npz"
    arguments = ["trace", "--image", image, "--prompt", "What?", "--model", model, "--max-tokens", "4"]
    status, out, _ = run(
        capsys, *arguments, "--downsample-mode", "4x", "--max-slice-nums", "2", "--save", str(out_file)
    )
    line = json.loads(out)
    assert status == 0
    assert set(line) == {"prompt_tokens", "visual_tokens", "target_sizes", "top5", "greedy", "text"}
    with np.load(out_file) as saved:
        assert set(saved) == {"input_ids", "pixel_values", "target_sizes", "features", "logits", "greedy"}
        assert saved["input_ids"].shape == (1, line["prompt_tokens"])
        assert saved["features"].shape[0] == line["visual_tokens"]
        assert saved["target_sizes"].tolist() == line["target_sizes"]
        assert saved["pixel_values"].shape == (1, 3, 14, 14 * sum(h * w for h, w in line["target_sizes"]))
        assert saved["logits"].argmax() == line["top5"][0] == line["greedy"][0]
        assert saved["greedy"].tolist() == line["greedy"]
        assert saved["pixel_values"].dtype == saved["features"].dtype == saved["logits"].dtype == np.float32


def test_trace_without_pictures(capsys: pytest.CaptureFixture[str], model: str) -> None:
    status, out, _ = run(capsys, "trace", "--prompt", "What?", "--model", model, "--max-tokens", "2")
    assert status == 0
    assert json.loads(out)["visual_tokens"] == 0


def test_plan_prints_the_agreed_json_line_for_sizes_and_files(capsys: pytest.CaptureFixture[str], image: str) -> None:
    status, out, _ = run(capsys, "plan", "1344x1344", "224x224", image, "--json")
    plans = json.loads(out)["plans"]
    assert status == 0
    assert [(p["height"], p["width"], p["grid"], p["visual_tokens"]) for p in plans[:2]] == [
        (1344, 1344, [3, 3], 640),
        (224, 224, None, 64),
    ]
    assert (plans[2]["height"], plans[2]["width"]) == (500, 640)
    assert all(v == [32, 32] for v in plans[0]["views"])
    assert all(p["vision_flops"] > 0 for p in plans)


@pytest.mark.parametrize("size", ["1080 x 1920", " 1080x1920 ", "1080X1920", "1080 × 1920"])
def test_a_size_may_be_written_as_people_write_it(capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert run(capsys, "plan", size, "--json") == run(capsys, "plan", "1080x1920", "--json")


@pytest.mark.parametrize("text", ["1080 x", "x 1920", "1080 1920", "1080 x 1920 x 3"])
def test_what_is_no_size_is_said_to_be_none(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, out, err = run(capsys, "plan", text)
    assert (status, out) == (2, "")
    assert err.startswith(f"pocketvlm plan: {text!r} is not a size.")


def test_plan_defaults_to_the_published_settings_and_knows_others(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert run(capsys, "plan", "1080x1920", "--json")[1] != ""
    fine = json.loads(run(capsys, "plan", "1080x1920", "--max-slice-nums", "36", "--json", "--model", model)[1])
    assert fine["plans"][0]["visual_tokens"] == 822


def test_plan_draws_the_slices(capsys: pytest.CaptureFixture[str], image: str, tmp_path: Path) -> None:
    out = tmp_path / "drawn.png"
    assert run(capsys, "plan", image, "--draw", str(out))[0] == 0
    with Image.open(out) as drawn:
        assert drawn.size == (640, 500)


def test_info_counts_the_parameters(capsys: pytest.CaptureFixture[str], model: str) -> None:
    facts = json.loads(run(capsys, "info", "--model", model, "--json")[1])
    assert facts["parameters"] > 100_000
    assert facts["linear_attention_layers"] == 3


def test_names_with_brackets_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(model).absolute()
    monkeypatch.chdir(tmp_path)
    for name in ("model[old]", "a[b]c"):
        (tmp_path / name).symlink_to(target)
        status, out, _ = run(capsys, "info", "--model", name)
        assert (status, name in out) == (0, True)


def test_chat_answers_line_by_line(
    capsys: pytest.CaptureFixture[str], model: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["Hello", f"/image {image}", "And this?", "/reset", "Hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _prompt="": next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    status, out, _ = run(capsys, "chat", "--model", model, "--json", "--max-tokens", "3", "--temperature", "0")
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [a["usage"]["visual_tokens"] > 0 for a in answers] == [False, True, False]
    assert answers[0]["text"] == answers[2]["text"]
    assert answers[1]["usage"]["prompt_tokens"] > answers[0]["usage"]["prompt_tokens"]


class Deltas:
    """An answer in these pieces; it looks whether each was shown before the next was asked for."""

    def __init__(self, deltas: list[Delta], shown: Callable[[], tuple[str, str]]) -> None:
        self._deltas, self._shown = deltas, shown
        self.answer = Answer("", Usage(1, 0, 1), {"total": 0.0}, "stop", "")

    def deltas(self) -> Iterator[Delta]:
        for number, delta in enumerate(self._deltas):
            yield delta
            seen = self._deltas[: number + 1]
            out, err = self._shown()
            assert out == "".join(one.text for one in seen)
            assert err.rstrip("\n") == "".join(one.reasoning for one in seen)


@pytest.mark.parametrize(
    ("deltas", "out", "err"),
    [
        (
            [Delta(reasoning="I "), Delta(reasoning="see.", text="A"), Delta(text=" cat", finish_reason="stop")],
            "A cat\n",
            "I see.\n",
        ),
        ([Delta(reasoning="Well"), Delta(reasoning=", "), Delta(finish_reason="length")], "\n", "Well, \n"),
        ([Delta(text="A"), Delta(text=" cat"), Delta(finish_reason="stop")], "A cat\n", ""),
    ],
    ids=["thought", "only thought", "none"],
)
def test_chat_shows_what_the_model_thinks_as_it_comes_and_never_in_stdout(
    capsys: pytest.CaptureFixture[str], deltas: list[Delta], out: str, err: str
) -> None:
    printed = ["", ""]

    def shown() -> tuple[str, str]:
        for i, text in enumerate(capsys.readouterr()):
            printed[i] += text
        return printed[0], printed[1]

    chat.show(Deltas(deltas, shown), AnswerPrinter())
    assert shown() == (out, err)


def test_thoughts_are_dim_on_a_terminal_that_has_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.say_aside("so")
    assert capsys.readouterr().err == "\x1b[2mso\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    console.say_aside("so")
    assert capsys.readouterr() == ("", "so")


def test_the_thoughts_of_a_chat_are_those_of_its_json_line(
    capsys: pytest.CaptureFixture[str], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("chat", "--model", model, "--enable-thinking", "--max-tokens", "12", "--temperature", "0")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    status, out, err = run(capsys, *command, "--json")
    line = json.loads(out)
    assert (status, err) == (0, "")
    assert line["reasoning_content"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert run(capsys, *command) == (0, f"{line['text']}\n", f"{line['reasoning_content']}\n")


def test_the_thoughts_of_a_question_stand_beside_its_answer(capsys: pytest.CaptureFixture[str], model: str) -> None:
    command = ("ask", "--model", model, "--enable-thinking", "--max-tokens", "12", "--temperature", "0", "Hello")
    status, out, err = run(capsys, *command, "--json")
    line = json.loads(out)
    assert (status, err) == (0, "")
    assert line["reasoning_content"]
    status, out, err = run(capsys, *command)
    assert (status, out) == (0, f"{line['text']}\n")
    assert err == f"{line['reasoning_content']}\n"


def mistakes(folder: Path) -> list[tuple[str, ...]]:
    """Command lines that are wrong, each in its own way."""
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").touch()
    good = folder / "good.png"
    Image.new("RGB", (40, 40), (9, 9, 9)).save(good)
    (folder / "cut.png").write_bytes(good.read_bytes()[:60])
    Image.new("L", (20000, 1)).save(folder / "thin.png")
    (folder / "model").mkdir()
    question = "What is it?"
    return [
        ("ask",),
        ("ask", "missing.png", question),
        ("ask", str(folder), question),
        *(("ask", str(folder / name), question) for name in ("text.png", "empty.jpg", "cut.png", "thin.png")),
        ("ask", str(good), ""),
        ("ask", str(good)),
        ("ask", str(good), question, "--downsample-mode", "8x"),
        ("ask", str(good), question, "--max-slice-nums", "0"),
        ("ask", str(good), question, "--max-slice-nums", "many"),
        ("ask", str(good), question, "--temperature", "-1"),
        ("ask", str(good), question, "--top-p", "2"),
        ("ask", str(good), question, "--num-beams", "0"),
        ("ask", str(good), question, "--num-beams", "3", "--temperature", "0.5"),
        ("ask", str(good), question, "--length-penalty", "2"),
        ("ask", str(good), question, "--no-such-option"),
        ("ask", str(good), question, "--model", "no-such-model"),
        ("ask", str(good), question, "--model", str(folder / "model")),
        ("ask", str(good), question, "--device", "tpu"),
        ("ask", str(good), question, "--device", "cuda:999"),
        ("trace", str(good)),
        ("trace", str(good), "--prompt", question, "--save", str(folder / "no" / "such" / "out.npz")),
        ("trace", str(good), "--prompt", question, "--save", str(folder)),
        ("trace", str(good), "--prompt", question, "--max-tokens", "0"),
        ("plan", "12by12"),
        ("plan", "0x10"),
        ("plan", "1" * 300),
        ("plan", "1x" + "9" * 5000),
        ("info", "--model", "~no-such-user/model"),
        ("info", "--model", "m" * 300),
        ("plan", "10x"),
        ("plan", "448x448", "--draw", str(folder / "out.png")),
        ("info", "--model", "nothing/here/either"),
        ("frobnicate",),
    ]


def test_every_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str) -> None:
    for arguments in mistakes(tmp_path):
        command = list(arguments)
        if command[0] in ("ask", "trace") and "--model" not in command:
            command += ["--model", model]
        before = sorted(tmp_path.rglob("*"))
        status, out, err = run(capsys, *command)
        assert (status, out) == (2, ""), (command, status, out)
        assert err.count("\n") == 1, (command, err)
        assert "Traceback" not in err
        assert err.startswith("pocketvlm"), (command, err)
        assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"


def test_mistakes_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    script = "import sys; from pocketvlm.cli import main; s = main(sys.argv[1:]); print(s, 'torch' in sys.modules)"
    for extra in (["missing.png"], [str(tmp_path / "text.png")], ["--temperature", "-1"], ["--model", "no-such-model"]):
        command = [sys.executable, "-c", script, "ask", "--prompt", "What?", *extra]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["2", "False"]


def test_without_a_command_the_help_names_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0
    assert all(command in out for command in COMMANDS)
    for command in COMMANDS:
        status, out, _ = run(capsys, command, "--help")
        assert status == 0
        assert ("--json" in out) == (command != "mcp")  # whose output is a protocol


@pytest.mark.parametrize(
    ("command", "usage", "titles"),
    [
        ("ask", "[IMAGE ...] QUESTION", ("the model", "the answer", "pictures and videos", "sampling")),
        ("chat", "[IMAGE ...]", ("a server", "the model", "the answer", "pictures and videos", "sampling")),
        ("bench serving", "[OPTION ...]", ("the model", "the load", "the figures")),
    ],
)
def test_the_help_of_many_options_is_in_groups(
    capsys: pytest.CaptureFixture[str], command: str, usage: str, titles: tuple[str, ...]
) -> None:
    status, out, err = run(capsys, *command.split(), "--help")
    assert (status, err) == (0, "")
    first = out.partition("\n\n")[0]
    assert first.startswith(f"usage: pocketvlm {command} [")
    assert first.endswith(usage)
    assert len(first.splitlines()) == 1
    places = [out.index(f"\n{title}:\n") for title in ("options", *titles)]
    assert places == sorted(places)
    ends = [*places[1:], len(out)]
    groups = [out[begin:end].count("\n  --") for begin, end in zip(places, ends, strict=True)]
    assert min(groups) >= 2
    assert max(groups) <= 10  # seen at a glance
    module = import_module(f"pocketvlm.cli.{command.replace(' ', '_')}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    options = [option for option in parser._option_string_actions if option.startswith("--") and option != "--help"]
    assert sorted(re.findall(r"^  (--[\w-]+)", out, re.MULTILINE)) == sorted(options)


def test_wrong_usage_of_a_variant_names_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "bench", "serving", "--runs", "torch")
    assert (status, out) == (2, "")
    assert err == "pocketvlm bench serving: unrecognized arguments: --runs torch; see pocketvlm bench serving --help\n"
    status, out, err = run(capsys, "bench", "serving", "--requests", "0")
    assert (status, out) == (2, "")
    assert err.startswith("pocketvlm bench serving: ")


def test_interrupt_is_silent_and_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketvlm.cli.plan.run", interrupted)
    status, _, err = run(capsys, "plan", "10x10")
    assert status == 130
    assert "Traceback" not in err


def test_options_may_stand_anywhere(capsys: pytest.CaptureFixture[str], model: str, image: str) -> None:
    orders = [
        ("ask", image, "--max-tokens", "2", "What?", "--json", "--model", model),
        ("ask", "--max-tokens", "2", "--json", image, "--model", model, "What?"),
    ]
    answers = [json.loads(run(capsys, *order)[1]) for order in orders]
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["usage"] == answers[1]["usage"]


def test_plan_takes_the_rate_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*options: str) -> int:
        return int(json.loads(run(capsys, "plan", "448x448", "--json", *options)[1])["plans"][0]["visual_tokens"])

    assert tokens("--model", "nano") == tokens("--model", "nano", "--downsample-mode", "4x")
    assert tokens("--model", "nano", "--downsample-mode", "16x") < tokens("--model", "nano")


def test_bars_leave_what_is_printed_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """On a terminal: an answer is no markup, and goes to stdout, where the bars are not."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(common, "PATIENCE", 0.0)
    arguments = argparse.Namespace(model=model, device="cpu", dtype="auto", runtime="auto", quantization="auto")
    with loaded(arguments) as vlm:
        assert vlm.progress is not None
        vlm.progress("Reading", 0, 2)
        print("[bold]9[/bold] [/x]")
        vlm.progress("Reading", 2, 2)
    out, err = capsys.readouterr()
    assert out == "[bold]9[/bold] [/x]\n"
    assert "Reading" in err


def test_a_file_that_is_read_is_not_written_over(
    capsys: pytest.CaptureFixture[str], model: str, image: str, tmp_path: Path
) -> None:
    before = Path(image).read_bytes()
    weights = Path(model) / "model.safetensors"
    size = weights.stat().st_size
    for name in ("link", "link.png"):
        (tmp_path / name).symlink_to(image)
    for out in (image, str(weights), str(tmp_path / "link"), str(tmp_path), "/dev/null"):
        for arguments in (
            ("plan", image, "--model", model, "--draw", out),
            ("trace", image, "--prompt", "What?", "--model", model, "--save", out),
        ):
            status, text, err = run(capsys, *arguments)
            assert (status, text, err.count("\n")) == (2, "", 1), (arguments, err)
    for out in ("link.png", "a.txt", str(weights), "missing/a.png"):
        status, text, err = run(capsys, "bench", "growth", "--model", model, "--plot", str(tmp_path / out))
        assert (status, text, err.count("\n")) == (2, "", 1), (out, err)
    assert Path(image).read_bytes() == before
    assert weights.stat().st_size == size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "link.png"]
