"""The command line: one file a command. Exit status 0 is done, 1 failed, 2 wrong usage or input, 130 stopped."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pocketvlm.cli import console
from pocketvlm.errors import EngineError, MissingExtraError, OutputError, PocketVLMError

# name → what it does; the module of the same name in this package has add_arguments(parser) and run(args).
COMMANDS = {
    "ask": "answer a question about pictures, PDF documents or a video",
    "chat": "talk about pictures, turn by turn",
    "serve": "serve a model by HTTP, with the APIs of OpenAI and Ollama and a page",
    "mcp": "serve look, read and extract as tools for agents (Model Context Protocol over stdio)",
    "plan": "show how pictures are sliced, and what that costs",
    "batch": "answer a file of requests, in the format of OpenAI's batches",
    "read": "write the text of documents: Markdown, plain text or HTML, a file for each",
    "extract": "make a table of documents: a row for each, kept to a schema",
    "tune": "fine-tune a model on conversations about pictures",
    "export": "write a model in the formats of other programs",
    "eval": "measure a model or an endpoint on tasks with known answers",
    "bench": "time a model here, alone or against its peers",
    "info": "show a model, its sizes, and this machine",
    "trace": "save every intermediate of one forward, for people who port the model",
}


# What a first argument makes of a command: those whose options have nothing in common with the others'.
VARIANTS = {("bench", "serving"): "bench_serving", ("bench", "tuning"): "bench_tuning"}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line.

    Attributes:
        elsewhere: the name of an option in other programs → its name here.
        rewrite: arguments up to `--` → what argparse is given.
    """

    elsewhere: Mapping[str, str] = {}
    rewrite: Callable[[Sequence[str]], list[str]] = staticmethod(list)  # type: ignore[assignment]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.allow_abbrev = False  # a beginning of a name would mean something else once there is one more option

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}{self._meant(message)}; see {self.prog} --help\n")

    def _meant(self, message: str) -> str:
        """Which option may be meant by one that is unknown, if any is near."""
        found = re.match(r"unrecognized arguments: (?:.*? )??--([\w-]+)", message)
        if found is None:
            return ""
        name, known = found[1].lower().replace("_", "-"), [option[2:] for option in self._option_string_actions]
        longer = [option for option in known if option.startswith(name)]
        near = [self.elsewhere[name]] if name in self.elsewhere else longer or get_close_matches(name, known, 1, 0.85)
        return f" (did you mean --{near[0]}?)" if near else ""


def command_parser(command: str, module: str | None = None) -> OneLineParser:
    """Make the parser of one command, or of the variant of it that is in another module."""
    text = COMMANDS[command]
    parser = OneLineParser(prog=f"pocketvlm {command}", description=f"{text[0].upper()}{text[1:]}.")
    known = import_module(f"pocketvlm.cli.{module or command}")
    parser.elsewhere = getattr(known, "ELSEWHERE", {})
    parser.rewrite = getattr(known, "REWRITE", list)
    known.add_arguments(parser)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """Make the parser that knows the commands by name only: importing all of them would be slow."""
    parser = OneLineParser(
        prog="pocketvlm",
        description="Run MiniCPM-V 4.6 on one machine. Commands use the embedded model unless --model names another; "
        "plan uses the settings of the published one.",
    )
    parser.add_argument("--version", action="store_true", help="print the version with its commit, and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=OneLineParser)
    for name, help_text in COMMANDS.items():
        commands.add_parser(name, help=help_text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    console.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    who = " ".join(("pocketvlm", *(arguments[:2] if tuple(arguments[:2]) in VARIANTS else arguments[: bool(command)])))
    try:
        try:
            return _run(command, arguments)
        finally:
            console.put(end="")  # what argparse printed, which may not be out yet
    except console.ReaderLeftError:
        return 0
    except console.StdoutError as error:
        console.say(f"{who}: the output could not be written: {error}")
        return 1
    except PocketVLMError as error:
        console.say(console.harmless(f"{who}: {error}"))
        return 1 if isinstance(error, OutputError) else 2
    except EngineError as error:
        console.say(console.harmless(f"{who}: {error}"))
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        console.say(f"{who}: {MissingExtraError('torch', 'torch')}")
        return 2
    except KeyboardInterrupt as stop:
        if argv is None:  # a program of our own: a second Ctrl-C ends it at once
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        console.say(f"{who}: stopped; {stop}" if stop.args else "")
        return 130


def _run(command: str, arguments: list[str]) -> int:
    if command:
        # Options may stand between pictures and the question, which a parser of several commands cannot read.
        module = VARIANTS.get((command, arguments[1] if len(arguments) > 1 else ""), command)
        args = _parse(command_parser(command, module), arguments[1:])
        status: int = import_module(f"pocketvlm.cli.{module}").run(args)
        return status
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.version:
        from pocketvlm.cli.version import version_text

        console.put(f"pocketvlm {version_text()}")
    else:
        parser.print_help()
    return 0


def _parse(parser: OneLineParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse arguments of which `--` ends the options, which `parse_intermixed_args` alone does not know."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    # No argument of a program holds a zero byte, and no parser takes one that begins with it for an option.
    words = [f"\0{word}" if word.startswith("-") else word for word in arguments[at + 1 :]]
    args = parser.parse_intermixed_args([*parser.rewrite(arguments[:at]), *words])
    for name, value in vars(args).items():
        setattr(args, name, [_unmarked(each) for each in value] if isinstance(value, list) else _unmarked(value))
    return args


def _unmarked(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix("\0")
    return Path(str(value).removeprefix("\0")) if isinstance(value, Path) else value
