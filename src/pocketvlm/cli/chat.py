"""pocketvlm chat [IMAGE…]: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.answer_options import add_logprobs, add_structure, answer_options
from pocketvlm.cli.common import (
    PICTURES,
    SAMPLING,
    VIDEO,
    add_json,
    add_model,
    add_options,
    answer_json,
    check_text,
    loaded,
    options_of,
    read_media,
    source,
)
from pocketvlm.cli.console import put, put_json, say, say_aside
from pocketvlm.errors import EngineError, PocketVLMError, PromptError

if TYPE_CHECKING:
    from pocketvlm.api.stream import Stream
    from pocketvlm.api.vlm import VLM

HELP = "Type a question. /image PATH adds a picture to the next question, /reset starts anew, /quit ends."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures or videos for the first question")
    parser.add_argument("--image", action="append", default=[], help="the same, as an option")
    add_model(parser)
    add_options(parser, PICTURES, VIDEO, SAMPLING)
    add_logprobs(parser)
    add_structure(parser)
    parser.add_argument("--enable-thinking", action="store_true", help="let the model reason first, on stderr")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    options = options_of(args, PICTURES, VIDEO, SAMPLING) | answer_options(args)
    pending, _ = read_media(args, [*args.image, *args.images], options)
    if args.enable_thinking:
        options["enable_thinking"] = True
    messages: list[dict[str, Any]] = []
    interactive = sys.stdin.isatty()
    with loaded(args) as vlm:
        if interactive:
            with suppress(ImportError):  # not on Windows, whose consoles edit lines themselves
                import readline  # noqa: F401 - `input` has arrow keys and a history once it is imported
            say(HELP)
        number = 0
        while (line := read_line(interactive=interactive, number=(number := number + 1))) is not None:
            if line in ("/quit", "/exit") or (interactive and line in ("quit", "exit")):
                break
            if line == "/reset":
                messages, pending = [], []
            elif line.startswith("/image "):
                pending.append(source(line.removeprefix("/image ").strip()))
            elif line.startswith("/"):
                say(HELP)
            elif line:
                try:
                    messages = _turn(vlm, messages, pending, line, options, args.json)
                    pending = []
                except (PocketVLMError, EngineError) as error:
                    if not interactive:
                        raise
                    say(str(error))
                    pending = []
    return 0


def read_line(*, interactive: bool, number: int = 1) -> str | None:
    """Read one line of the user, None at the end of the input; the prompt never stands in what is piped on.

    Args:
        number: which line it is, from 1, for the message.

    Raises:
        PromptError: the line is no text in the encoding of the input.
    """
    on_terminal = interactive and sys.stdout.isatty()
    if interactive and not on_terminal:
        say("> ", end="")
    try:
        line = input("> " if on_terminal else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        hint = "Name its encoding in PYTHONIOENCODING."
        raise PromptError(f"the input is not text in {error.encoding}", hint=hint) from None
    if not line.startswith("/image "):  # a path may be of any bytes
        check_text(f"line {number} of the input", line)
    return line


def _turn(
    vlm: VLM,
    messages: list[dict[str, Any]],
    pending: list[Any],
    line: str,
    options: dict[str, Any],
    as_json: bool,
) -> list[dict[str, Any]]:
    """Answer one question; returns the longer conversation."""
    from pocketvlm.api.vlm import question_messages

    messages = [*messages, *question_messages(pending, line)]
    stream = vlm.stream(messages, **options)
    _show(stream, as_json)
    answer = stream.answer
    if as_json:
        put_json(answer_json(answer))
    return [*messages, {"role": "assistant", "content": answer.text}]


def _show(stream: Stream, as_json: bool) -> None:
    """Read an answer to its end, and print it as it comes, unless it becomes a JSON line: what the model thinks first
    to stderr, so that stdout holds the answer alone.
    """
    is_thinking = False
    for delta in stream.deltas():
        if as_json:
            continue
        if delta.reasoning:
            say_aside(delta.reasoning)
            is_thinking = True
        if is_thinking and (delta.text or delta.finish_reason):
            say("")  # the answer begins on a line of its own
            is_thinking = False
        if delta.text:
            put(delta.text, end="")
    if not as_json:
        put()
