"""Tokens of one answer → the text, the reasoning and the tool calls that are certain, as they grow.

What may turn out to be the beginning of a stop string, of the tag that ends the reasoning, or of a call, is held back
until it is known what it is. How tokens are spread over calls changes nothing of what comes out in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pocketvlm.api.answers import TokenLogprob
from pocketvlm.processing.prompt.tokenizer import IncrementalDetokenizer
from pocketvlm.tools.calls import ToolCall, ToolCallSplitter, overlap

REASONING_ENDS = "</think>"


class ReasoningSplitter:
    """Text that begins with reasoning, cut at the first `</think>`.

    Reasoning loses the white space at both of its ends, the answer the newlines at its beginning. Without the tag all
    of the text is reasoning.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_open, self._has_reasoning, self._has_text = True, False, False

    def add(self, new: str, is_last: bool) -> tuple[str, str]:
        """Take more text; returns the reasoning and the answer's text that have become certain."""
        if not self._is_open:
            return "", self._answer(new)
        thought, tag, rest = (self._held + new).partition(REASONING_ENDS)
        self._is_open = not tag
        if not self._has_reasoning:
            thought = thought.lstrip()
        certain = thought if tag or is_last else thought[: len(thought) - overlap(thought, REASONING_ENDS)]
        certain = certain.rstrip()  # white space may be the last of it
        self._held = thought[len(certain) :]
        self._has_reasoning |= bool(certain)
        return certain, self._answer(rest)

    def _answer(self, text: str) -> str:
        if not self._has_text:
            text = text.lstrip("\n")
            self._has_text = bool(text)
        return text


class News(NamedTuple):
    """What tokens have made certain. `stopped`: a stop string has ended the answer."""

    reasoning: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    stopped: bool


@dataclass
class Choice:
    """One answer as it grows.

    Attributes:
        stops: strings that end it, wherever they come, in its reasoning too.
        splitter: None for answers without reasoning.
        calls: None where there are no tools: nothing in a text is a call then.
        held: text that may be the beginning of a stop string.
        texts, reasonings, tool_calls: what has become certain, in pieces.
    """

    detokenizer: IncrementalDetokenizer
    stops: Sequence[str] = ()
    splitter: ReasoningSplitter | None = None
    calls: ToolCallSplitter | None = None
    held: str = ""
    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, tokens: Sequence[int], is_last: bool) -> News:
        """Take tokens; returns what is new."""
        text = self.held + "".join(map(self.detokenizer.add, tokens))
        if is_last:
            text += self.detokenizer.flush()
        stop = first_stop(text, self.stops)
        if stop is not None:
            certain, self.held = text[:stop], ""
        else:
            held = 0 if is_last else max((overlap(text, stop) for stop in self.stops), default=0)
            certain, self.held = text[: len(text) - held], text[len(text) - held :]
        is_last |= stop is not None
        reasoning, answer = ("", certain) if self.splitter is None else self.splitter.add(certain, is_last)
        parts = [answer] if self.calls is None else self.calls.add(answer, is_last=is_last)
        beside = "".join(part for part in parts if isinstance(part, str))
        calls = tuple(part for part in parts if isinstance(part, ToolCall))
        self.reasonings.append(reasoning)
        self.texts.append(beside)
        self.tool_calls += calls
        return News(reasoning, beside, calls, stop is not None)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str | None:
        """None for answers without reasoning."""
        return None if self.splitter is None else "".join(self.reasonings)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, the longer of two that end together; None without any.

    That is the one that a reader of single characters would stop at, whatever the tokens.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None
