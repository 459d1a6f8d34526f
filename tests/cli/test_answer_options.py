"""What `ask` and `chat` are told about answers: structures are kept; probabilities and alternatives are in the line."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run
from jsonschema import Draft202012Validator

import pocketvlm

SCHEMA = {
    "properties": {"total": {"enum": [1, 2]}},
    "required": ["total"],
    "additionalProperties": False,
    "type": "object",
}
GRAMMAR = 'start: "<" NUMBER ">"\nNUMBER: /[1-9][0-9]?/\n'


@pytest.fixture(scope="module")
def model(seeded_checkpoint: Callable[[int], Path]) -> str:
    return str(seeded_checkpoint(1))


def ask(capsys: pytest.CaptureFixture[str], model: str, *options: str) -> dict[str, Any]:
    status, out, err = run(capsys, "ask", "What?", "--model", model, "--max-tokens", "60", "--json", *options)
    assert (status, err, out.count("\n")) == (0, "", 1)
    line: dict[str, Any] = json.loads(out)
    return line


def test_answers_keep_to_a_schema_in_a_file_or_in_the_argument(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    answers = [
        ask(capsys, model, "--json-schema", given, "--seed", "3") for given in (str(file), f" {json.dumps(SCHEMA)}")
    ]
    assert answers[0]["text"] == answers[1]["text"]
    Draft202012Validator(SCHEMA).validate(json.loads(answers[0]["text"]))


def test_answers_keep_to_an_expression_choices_and_a_grammar(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.lark"
    file.write_text(GRAMMAR)
    assert re.fullmatch("[ab]{2,4}", ask(capsys, model, "--regex", "[ab]{2,4}")["text"])
    assert ask(capsys, model, "--choice", "yes, please", "--choice", "no")["text"] in ("yes, please", "no")
    assert re.fullmatch("<[1-9][0-9]?>", ask(capsys, model, "--grammar", str(file))["text"])
    status, out, _ = run(capsys, "ask", "What?", "--model", model, "--choice", "maybe")
    assert (status, out) == (0, "maybe\n")


def test_every_turn_of_a_chat_keeps_to_it(
    capsys: pytest.CaptureFixture[str], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("One?\nTwo?\n"))
    status, out, _ = run(
        capsys, "chat", "--model", model, "--choice", "so", "--json", "--logprobs", "--top-logprobs", "1"
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["text"] for line in lines] == ["so", "so"]
    assert all(len(line["logprobs"]["content"][0]["top_logprobs"]) == 1 for line in lines)


def test_logprobs_are_those_of_the_answer_in_the_form_of_a_completion(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    line = ask(capsys, model, "--logprobs", "--top-logprobs", "2", "--temperature", "0", "--max-tokens", "4")
    with pocketvlm.load(model) as vlm:
        expected = vlm.ask([], "What?", logprobs=2, temperature=0, max_tokens=4)
    assert expected.logprobs is not None
    tokens = line["logprobs"]["content"]
    assert [token["token"] for token in tokens] == [token.token for token in expected.logprobs]
    for token, other in zip(tokens, expected.logprobs, strict=True):
        assert math.isclose(token["logprob"], other.logprob, rel_tol=1e-5)
        assert token["logprob"] <= token["top_logprobs"][0]["logprob"] + 1e-6
        assert len(token["top_logprobs"]) == 2
    assert all(not t["top_logprobs"] for t in ask(capsys, model, "--logprobs")["logprobs"]["content"])
    assert "logprobs" not in ask(capsys, model)


def test_several_answers_are_one_line(capsys: pytest.CaptureFixture[str], model: str) -> None:
    options = ("--n", "3", "--temperature", "2", "--seed", "5", "--max-tokens", "8")
    line = ask(capsys, model, *options, "--logprobs")
    answers = [line, *line["alternatives"]]
    assert len({answer["text"] for answer in answers}) > 1
    assert len(answers) == 3
    assert all(len(answer["logprobs"]["content"]) == answer["usage"]["completion_tokens"] for answer in answers)
    assert "alternatives" not in ask(capsys, model, "--n", "1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--n", "2"), "Add --json"),
        (("--n", "0", "--json"), "n=0"),
        (("--n", "two"), "--n"),
        (("--logprobs",), "Add --json"),
        (("--top-logprobs", "2", "--json"), "Add --logprobs"),
        (("--logprobs", "--top-logprobs", "99", "--json"), "logprobs=99"),
        (("--regex", "a", "--choice", "b"), "not allowed with"),
        (("--json-schema", "{}", "--grammar", "FILE"), "not allowed with"),
        (("--json-schema", "no/such/file"), "No such file"),
        (("--json-schema", "."), "Is a directory"),
        (("--json-schema", "{"), "--json-schema: json is not JSON"),
        (("--json-schema", "LIST"), "expected a JSON schema"),
        (("--json-schema", "LATIN"), "not UTF-8"),
        (("--json-schema", "LARGE"), "is over"),
        (("--json-schema", "a\0b"), "cannot be read"),
        (("--grammar", "no/such/file"), "No such file"),
        (("--grammar", "LIST"), "cannot be compiled"),
        (("--regex", "(a"), "cannot be compiled"),
        (("--regex", "a" * 5000), "--regex: regex takes 5000 bytes"),
        (("--choice", "\udce9"), "surrogate"),
        (("--n", "2", "--json", "--num-beams", "2"), "num_beams"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    files = {"LIST": b"[1]", "LATIN": b"\xe9", "LARGE": b" " * 70_000, "FILE": GRAMMAR.encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    named = [str(tmp_path / option) if option in files else option for option in options]
    status, out, err = run(capsys, "ask", "What?", "--model", model, *named)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert reason in err
    assert "Traceback" not in err
