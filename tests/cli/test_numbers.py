"""Every number of every command has a range, and what is not in it is refused before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest
from helpers.command import run
from PIL import Image

from pocketvlm.cli import COMMANDS, command_parser
from pocketvlm.evaluation import ranges
from pocketvlm.ranges import Range

HUGE = "9" * 23
ABSURD = {int: (HUGE, f"-{HUGE}"), float: ("nan", "inf", "-inf", "1e300", "-1e300")}
ENDPOINT = ("--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m")
NEEDED: dict[str, tuple[str, ...]] = {  # command → what it needs beside the number
    "ask": ("a.png", "What?", "--json", "--logprobs"),
    "chat": ("--json", "--logprobs"),
    "plan": ("a.png", "--downsample-mode", "auto"),
    "batch": ("in.jsonl", "out.jsonl"),
    "read": ("a.png", "--out", "text", "--downsample-mode", "auto"),
    "extract": ("a.png", "--schema", "a: string", "--out", "rows.csv", "--downsample-mode", "auto"),
    "eval": ("one-word",),
    "bench": ("growth",),
    "trace": ("--prompt", "What?"),
    "serve": ("--port", "0"),
    "tune": ("in.jsonl", "--downsample-mode", "auto"),
}
OWN = ("batch", "bench", "eval", "tune")  # commands with a table of their own, `RANGES`


def numbers(command: str) -> Iterator[argparse.Action]:
    """The options of a command that are numbers."""
    return (action for action in command_parser(command)._actions if action.type in ABSURD)


def of_endpoint(option: str) -> tuple[str, ...]:
    return ENDPOINT if option.removeprefix("--") in ranges.ENDPOINT else ()


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), (arguments, status, out, err)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands run."""
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "in.jsonl").write_text('{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}\n')
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "option", "kind"),
    [(name, action.option_strings[0], action.type) for name in COMMANDS for action in numbers(name)],
)
def test_an_absurd_number_is_one_line(
    capsys: pytest.CaptureFixture[str], command: str, option: str, kind: type
) -> None:
    more = of_endpoint(option) if command == "eval" else ()
    for value in ABSURD[kind]:
        refuse(capsys, command, *NEEDED[command], *more, f"{option}={value}")


@pytest.mark.parametrize("command", OWN)
def test_numbers_end_where_the_table_of_the_command_says(capsys: pytest.CaptureFixture[str], command: str) -> None:
    ranges: Mapping[str, Range] = import_module(f"pocketvlm.cli.{command}").RANGES
    for name, allowed in ranges.items():
        option = f"--{name.replace('_', '-')}"
        below = allowed.min if allowed.is_open else allowed.min - 1
        for value in (below, allowed.max + 1):
            refuse(
                capsys,
                command,
                *NEEDED[command],
                *(of_endpoint(option) if command == "eval" else ()),
                f"{option}={value}",
            )


@pytest.mark.parametrize("command", OWN)
def test_every_number_of_a_command_is_in_a_table(command: str) -> None:
    from pocketvlm.cli.common import PICTURES, SAMPLING, VIDEO

    module = import_module(f"pocketvlm.cli.{command}")
    elsewhere = {*PICTURES, *VIDEO, *SAMPLING} - set(module.RANGES)
    assert {action.dest for action in numbers(command)} - elsewhere == set(module.RANGES)
