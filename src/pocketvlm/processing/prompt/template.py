"""The checkpoint's own chat template, rendered so that nobody but us can write a control token.

Takes OpenAI-style messages, gives a `RenderedPrompt`: pieces of text and control tokens, with the media in order. Its
text equals what `apply_chat_template` of transformers 5.23 renders from the same messages.

A template mixes its own control tokens with whatever users wrote, and afterwards the two look alike. So before
rendering, every character of foreign text that could begin or end a control token gets a guard beside it: one character
that occurs in none of the inputs. What still matches a control token after rendering is the template's; then the guards
go, and the text between control tokens is what it would have been without them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketvlm.errors import CheckpointError, ConfigError, PromptError
from pocketvlm.processing.prompt.messages import MediaPart, check_messages
from pocketvlm.processing.prompt.tokenizer import IMAGE_PAD, VIDEO_PAD, token_content
from pocketvlm.ranges import show, show_json
from pocketvlm.text_files import BYTE_ORDER_MARK, is_there, read_json, read_text
from pocketvlm.tools.definitions import check_tools

# Control tokens that the text of an assistant message may hold: the template itself looks for the first two there, and
# a model's answer that was not parsed carries the calls as text.
ASSISTANT_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

# What the model writes around places, and around what they are of: an answer that is learnt holds these too, or the
# model would learn to spell them. In the prompts of requests they stay characters.
PLACE_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<point>", "</point>")

# Guards are taken from here: characters without a meaning, which no template trims, splits at or escapes.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the prompt: one control token by name, or text in which nothing is one."""

    text: str
    is_control: bool


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A rendered conversation, its media still single placeholders.

    Attributes:
        pieces: text and control tokens in order. The n-th `<|image_pad|>` control token stands for the n-th image of
            `media`, the n-th `<|video_pad|>` for the n-th video.
        media: pictures and videos in order of the messages.
    """

    pieces: tuple[Piece, ...]
    media: tuple[MediaPart, ...]

    @property
    def text(self) -> str:
        """The prompt as one string, as the template wrote it."""
        return "".join(piece.text for piece in self.pieces)


class ChatTemplate:
    """A compiled chat template that knows which names are control tokens.

    Args:
        source: the Jinja template of the checkpoint.
        control_tokens: every name that the tokenizer would turn into an id of its own.
        variables: strings the template may use, such as `bos_token`.

    Raises:
        CheckpointError: the template is not valid Jinja, or a control token is a single character.
    """

    def __init__(self, source: str, control_tokens: Iterable[str], variables: Mapping[str, str] | None = None) -> None:
        names = sorted(control_tokens, key=len, reverse=True)  # of two names at one place the longer one counts
        if names and len(names[-1]) < 2:
            raise CheckpointError(f"control token {names[-1]!r} is one character: it could not be told from text")
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            # The last three are Python's, of a template that is nested too deeply for its compiler.
            raise CheckpointError(f"the chat template is not valid Jinja ({type(error).__name__})") from None
        self._source = source
        self._variables = dict(variables or {})
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else "(?!)()")
        self._firsts = {name[0] for name in names}
        self._lasts = {name[-1] for name in names}

    @classmethod
    def from_directory(
        cls, path: str | Path, control_tokens: Iterable[str], *, config: Mapping[str, Any] | None = None
    ) -> Self:
        """Read `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json`.

        Args:
            path: the directory.
            control_tokens: what a user's text may not spell.
            config: the content of `tokenizer_config.json`, where it has been read already.

        Raises:
            CheckpointError: there is neither, or it is not valid Jinja.
            ConfigError: `tokenizer_config.json` is missing or not JSON.
        """
        directory = Path(path)
        if config is None:
            config = read_json(directory / "tokenizer_config.json")
        source = template_source(directory, config=config)
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        found = {name: token_content(config.get(name)) for name in names}
        return cls(source, control_tokens, {name: text for name, text in found.items() if text is not None})

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        enable_thinking: bool = False,
        add_generation_prompt: bool = True,
        learnt: bool = False,
    ) -> RenderedPrompt:
        """Render a conversation.

        Args:
            messages: OpenAI-style messages, see `pocketvlm.processing.prompt.messages`.
            tools: OpenAI tool definitions, or None.
            enable_thinking: let the model reason before it answers.
            add_generation_prompt: end with the opening of an assistant message.
            learnt: the answers are what a model learns to write, `PLACE_TOKENS` in them included.

        Raises:
            PromptError: messages, tools or options do not form a prompt, or the template refuses them.
        """
        for name, value in (("enable_thinking", enable_thinking), ("add_generation_prompt", add_generation_prompt)):
            if not isinstance(value, bool):
                raise PromptError(f"{name} is {show_json(value)}, expected true or false")
        conversation = check_messages(messages)
        checked_tools = check_tools(tools)
        guard = self._unused_character(conversation.messages, checked_tools)
        allowed = ASSISTANT_TOKENS + (PLACE_TOKENS if learnt else ())
        rendered = self._run(
            messages=[self._guard_message(message, guard, allowed) for message in conversation.messages],
            tools=self._guard_tree(checked_tools, guard),
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )
        pieces = tuple(self._split(rendered, guard))
        _check_placeholders(pieces, conversation.media)
        return RenderedPrompt(pieces=pieces, media=conversation.media)

    def _run(self, **variables: Any) -> str:
        try:
            return self._template.render(**(self._variables | variables))
        except _RefusalError as error:
            raise PromptError(f"the chat template refuses these messages: {str(error)[:200]}") from None
        except Exception as error:  # a template is a program: any of its faults is about this prompt
            raise PromptError(f"the chat template failed on these messages ({type(error).__name__})") from None

    def _unused_character(self, *trees: Any) -> str:
        """Return a character that neither the inputs nor the template contain."""
        used = set(self._source).union(*_strings(trees), *self._variables.values())
        for block in _PRIVATE_USE:
            for code in block:
                if chr(code) not in used:
                    return chr(code)
        raise PromptError("the messages use every private-use character of Unicode")

    def _guard_text(self, text: str, guard: str) -> str:
        """Return `text` in which no control token can begin or end."""
        beside = {ord(char): char + guard for char in self._firsts}
        for char in self._lasts:
            beside[ord(char)] = guard + beside.get(ord(char), char)
        return text.translate(beside)

    def _guard_assistant_text(self, text: str, guard: str, allowed: Sequence[str]) -> str:
        """Do the same, but leave the tokens that an assistant may use."""
        parts = re.split("(" + "|".join(map(re.escape, allowed)) + ")", text)
        return "".join(part if i % 2 else self._guard_text(part, guard) for i, part in enumerate(parts))

    def _guard_tree(self, value: Any, guard: str) -> Any:
        """Put guards into every string and key of a plain JSON value."""
        if isinstance(value, str):
            return self._guard_text(value, guard)
        if isinstance(value, dict):
            return {self._guard_text(key, guard): self._guard_tree(item, guard) for key, item in value.items()}
        if isinstance(value, list):
            return [self._guard_tree(item, guard) for item in value]
        return value

    def _guard_message(self, message: dict[str, Any], guard: str, allowed: Sequence[str]) -> dict[str, Any]:
        """Put guards into all that the caller wrote; role and part types are ours."""
        guard_answer = partial(self._guard_assistant_text, allowed=allowed)
        guard_text = guard_answer if message["role"] == "assistant" else self._guard_text
        result = dict(message)
        if isinstance(message["content"], str):
            result["content"] = guard_text(message["content"], guard)
        else:
            result["content"] = [
                part | {"text": guard_text(part["text"], guard)} if "text" in part else part
                for part in message["content"]
            ]
        if "reasoning_content" in message:
            result["reasoning_content"] = self._guard_text(message["reasoning_content"], guard)
        if "tool_calls" in message:
            result["tool_calls"] = [
                {"function": {key: self._guard_tree(value, guard) for key, value in call["function"].items()}}
                for call in message["tool_calls"]
            ]
        return result

    def _split(self, rendered: str, guard: str) -> Iterator[Piece]:
        """Cut at the template's control tokens, then drop the guards."""
        for index, part in enumerate(self._control.split(rendered)):
            text = part.replace(guard, "")
            if text:
                yield Piece(text=text, is_control=index % 2 == 1)


def without_places(text: str) -> str:
    """An answer as its text is decoded, which leaves `PLACE_TOKENS` out."""
    return re.sub("|".join(map(re.escape, PLACE_TOKENS)), "", text)


def template_source(directory: Path, *, config: Mapping[str, Any] | None = None) -> str:
    """The Jinja source of a checkpoint's template; arguments and errors as for `ChatTemplate.from_directory`."""
    file = directory / "chat_template.jinja"
    if is_there(file):
        try:
            return _checked(file, read_text(file))
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
    source: Any = (read_json(directory / "tokenizer_config.json") if config is None else config).get("chat_template")
    if isinstance(source, list):  # several templates by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}
        source = named.get("default")
    if not isinstance(source, str):
        raise CheckpointError(
            f"{directory} has no chat template", hint="A checkpoint directory needs chat_template.jinja."
        )
    return _checked(directory / "tokenizer_config.json", source)


def _checked(file: Path, source: str) -> str:
    """The template without a byte order mark, which would stand in every prompt, and with lines that end as Jinja has
    them; `CheckpointError` where no message could come into the prompt: it would fail at every request.
    """
    source = source.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
    if "messages" not in source or not ("{{" in source or "{%" in source):
        raise CheckpointError(
            f"{file} holds no chat template: it is {show(source.strip())}, which takes no messages",
            hint="Copy the one that came with the weights.",
        )
    return source


def check_template_kwargs(kwargs: Mapping[str, Any] | None) -> dict[str, bool]:
    """Check a request's `chat_template_kwargs` against an allow-list: only `enable_thinking`, and only true or false.

    Raises:
        PromptError: any other name or value.
    """
    checked: dict[str, bool] = {}
    for name, value in (kwargs or {}).items():
        if name != "enable_thinking":
            raise PromptError(f"chat_template_kwargs: {show_json(name)} is unknown, expected enable_thinking")
        if not isinstance(value, bool):
            raise PromptError(f"chat_template_kwargs: enable_thinking is {show_json(value)}, expected true or false")
        checked[name] = value
    return checked


class _RefusalError(jinja2.TemplateError):
    """Raised by the template itself through `raise_exception`; the message is the checkpoint's own."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, by which templates mark what a model writes: its content, as it is."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the settings that published chat templates are written for (transformers sets the same)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        # Jinja's own filter escapes < > & for HTML; a prompt wants the JSON as it is.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    def raise_exception(message: str) -> None:
        raise _RefusalError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _strings(value: Any) -> Iterator[str]:
    """Yield every string and key in a plain value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _check_placeholders(pieces: tuple[Piece, ...], media: tuple[MediaPart, ...]) -> None:
    """Refuse a prompt that has not a placeholder for each picture and video: a template may drop or repeat text."""
    for kind, name in (("image", IMAGE_PAD), ("video", VIDEO_PAD)):
        placed = sum(piece.is_control and piece.text == name for piece in pieces)
        given = sum(part.kind == kind for part in media)
        if placed != given:
            raise PromptError(f"the chat template placed {placed} of {given} {kind}s")
