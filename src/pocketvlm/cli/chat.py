"""pocketvlm chat [IMAGE…]: a conversation in the terminal, with a model of this process or of a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from pocketvlm.api.answers import Answer, Delta
from pocketvlm.cli.answer_options import add_groups, add_logprobs, answer_options
from pocketvlm.cli.answer_printer import AnswerPrinter
from pocketvlm.cli.common import (
    PICTURES,
    PLACES,
    SAMPLING,
    VIDEO,
    add_json,
    answer_json,
    check_text,
    loaded,
    options_of,
    read_media,
    source,
)
from pocketvlm.cli.console import harmless, put_json, say, say_aside
from pocketvlm.cli.conversation import AsVideo, Conversation, Turn, dropped, local_parts, name_of
from pocketvlm.errors import ConfigError, EngineError, PocketVLMError, PromptError

WELCOME = "Type a question; pictures can be dropped here. /help lists the commands, Ctrl-D ends."
# Options of sampling that OpenAI's API has no field for.
_LOCAL_ONLY = ("num_beams", "length_penalty", "prompt_lookup_num_tokens")


class Streamed(Protocol):
    """An answer that comes: `pocketvlm.api.stream.Stream`, or that of an endpoint."""

    def deltas(self) -> Iterator[Delta]: ...

    @property
    def answer(self) -> Answer: ...


class Talker(Protocol):
    """Whoever answers."""

    def parts(self, named: Any) -> list[dict[str, Any]]:
        """The parts of a message that show a picture, a document or a video."""
        ...

    def stream(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> Streamed: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm chat [options] [IMAGE ...]"
    images = "pictures, documents (a.pdf#2-5: these pages) or videos for the first question"
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=images)
    parser.add_argument("--image", action="append", default=[], help="the same, as an option")
    parser.add_argument(
        "--video", action="append", default=[], help="a video, or an animation (GIF, WebP, PNG) to be seen as one"
    )
    parser.add_argument("--system", default="", help="an instruction for the whole conversation")
    parser.add_argument("--plain", action="store_true", help="show answers as they are, not as formatted Markdown")
    parser.add_argument("--enable-thinking", action="store_true", help="let the model reason first, on stderr")
    add_json(parser)
    server = parser.add_argument_group("a server")
    server.add_argument("--url", help="a server that answers instead, up to /v1; --model is then its name there")
    server.add_argument("--api-key", help="with --url: its key (default: the variable OPENAI_API_KEY)")
    add_logprobs(add_groups(parser))


def run(args: argparse.Namespace) -> int:
    options = options_of(args, PICTURES, VIDEO, SAMPLING) | answer_options(args)
    check_text("--system", args.system)
    if args.enable_thinking:
        options["enable_thinking"] = True
    with _talker(args, options) as (talker, media):
        conversation = Conversation(talker.parts, options, pending=media, system=args.system)
        return _converse(conversation, talker, args)


@contextmanager
def _talker(args: argparse.Namespace, options: Mapping[str, Any]) -> Iterator[tuple[Talker, list[Any]]]:
    """Whoever answers, and the pictures of the command line."""
    named = [*args.image, *args.images]
    videos = [AsVideo(source(text)) for text in args.video]
    if args.url is None:
        if args.api_key is not None:
            raise ConfigError("--api-key is for --url", hint="Leave it out.")
        media, _ = read_media(args, named, {k: v for k, v in options.items() if k != "enable_thinking"})
        with loaded(args) as vlm:
            yield LocalTalker(vlm), [*media, *videos]
        return
    from pocketvlm.client.chat import ChatEndpoint

    for name, value in ((name, getattr(args, name)) for name in PLACES):
        if value != "auto":
            raise ConfigError(f"--{name} is for a model of this machine", hint="Leave it out, or leave --url out.")
    if args.adapter is not None:
        hint = "Leave it out, or name one that the server has as --model."
        raise ConfigError("--adapter is for a model of this machine", hint=hint)
    body_of(options)  # before anything is sent
    key = args.api_key if args.api_key is not None else os.environ.get("OPENAI_API_KEY", "")
    endpoint = ChatEndpoint(args.url, None if args.model == "nano" else args.model, api_key=key)
    yield RemoteTalker(endpoint, options), [*(source(text) for text in named), *videos]


class LocalTalker:
    """A model of this process."""

    def __init__(self, vlm: Any) -> None:
        self._vlm = vlm

    def parts(self, named: Any) -> list[dict[str, Any]]:
        return local_parts(named)

    def stream(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> Streamed:
        stream: Streamed = self._vlm.stream(messages, **options)
        return stream


class RemoteTalker:
    """An endpoint with OpenAI's API; `options` say in how many pixels pages are drawn for it."""

    def __init__(self, endpoint: Any, options: Mapping[str, Any]) -> None:
        self._endpoint, self._options = endpoint, options

    def parts(self, named: Any) -> list[dict[str, Any]]:
        from pocketvlm.client.media import media_parts, page_resolution

        if isinstance(named, AsVideo):
            return media_parts(named.source, as_video=True)
        return media_parts(named, resolution=page_resolution(self._options))

    def stream(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> Streamed:
        stream: Streamed = self._endpoint.stream(messages, body_of(options))
        return stream


def body_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as fields of a body of OpenAI's API with vLLM's additions.

    Raises:
        ConfigError: one that such a body has no field for.
    """
    body: dict[str, Any] = {}
    for name, value in options.items():
        if name in _LOCAL_ONLY:
            raise ConfigError(f"--{name.replace('_', '-')} is not known to servers", hint="Leave it or --url out.")
        if name == "page_dpi":
            continue  # pages are drawn here
        if name in PICTURES or name in VIDEO:
            body.setdefault("mm_processor_kwargs", {})[name] = value
        elif name == "enable_thinking":
            body["chat_template_kwargs"] = {name: value}
        elif name == "logprobs":
            raise ConfigError("--logprobs is for a model of this machine", hint="Leave it or --url out.")
        elif name == "structured_outputs":
            kinds = {kind: getattr(value, kind) for kind in ("json", "regex", "choice", "grammar")}
            body[name] = {kind: given for kind, given in kinds.items() if given is not None}
        else:
            body[name] = value
    return body


def _converse(conversation: Conversation, talker: Talker, args: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # not on Windows, whose consoles edit lines themselves
            import readline  # noqa: F401 - `input` has arrow keys and a history once it is imported
        say(WELCOME)
    number = 0
    while True:
        number += 1
        try:
            if (line := read_line(interactive=interactive, number=number)) is None:
                break
        except PromptError as error:
            if not interactive:
                raise
            say(harmless(str(error)))
            continue
        if line in ("/quit", "/exit") or (interactive and line in ("quit", "exit")):
            break
        try:
            if (turn := _next_turn(conversation, line, interactive=interactive)) is not None:
                _answer(conversation, turn, talker, args)
        except (PocketVLMError, EngineError) as error:
            if not interactive:
                raise
            say(harmless(str(error)))
    return 0


def _next_turn(conversation: Conversation, line: str, *, interactive: bool) -> Turn | None:
    """The question of a line; None where it was a command, or named pictures alone."""
    before = len(conversation.pending)
    if interactive:  # a program that writes lines means what it writes
        files, line = dropped(line)
        for file in files:
            conversation.add(file)
    turn = conversation.command(line) if line.startswith("/") else conversation.ask(line) if line else None
    if interactive and turn is None and len(conversation.pending) > before:
        names = ", ".join(name_of(one) for one in conversation.pending)
        say(f"With the next question: {names}")
    return turn


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


def _answer(conversation: Conversation, turn: Turn, talker: Talker, args: argparse.Namespace) -> None:
    """Answer one question, and show the answer as it comes, or as a JSON line when it is complete."""
    stream = talker.stream(conversation.messages(turn), conversation.options)
    if args.json:
        for _ in stream.deltas():
            pass
        put_json(answer_json(stream.answer))
    else:
        show(stream, AnswerPrinter(formatted=False if args.plain else None))
    conversation.done(turn, stream.answer.text)


def show(stream: Streamed, printer: AnswerPrinter) -> None:
    """Read an answer to its end, and print it as it comes: what the model thinks first to stderr, so that stdout holds
    the answer alone.
    """
    is_thinking = False
    with printer:
        for delta in stream.deltas():
            if delta.reasoning:
                say_aside(delta.reasoning)
                is_thinking = True
            if is_thinking and (delta.text or delta.finish_reason):
                say("")  # the answer begins on a line of its own
                is_thinking = False
            if delta.text:
                printer.add(delta.text)
        printer.end()
