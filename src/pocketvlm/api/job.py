"""One request together with its words: tokens become text, and text an `Answer`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketvlm.api.answers import Answer, EngineError, TokenLogprob, Usage
from pocketvlm.engine.request import Output, Request
from pocketvlm.processing.prompt.tokenizer import IncrementalDetokenizer, Tokenizer


@dataclass
class Choice:
    """The text of one answer as it grows."""

    detokenizer: IncrementalDetokenizer
    stops: Sequence[str]
    text: str = ""
    shown: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, tokens: Sequence[int], finished: bool) -> tuple[str, bool]:
        """Take tokens; returns the text that may be shown now, and whether a stop string has ended the answer."""
        for token in tokens:
            self.text += self.detokenizer.add(token)
        if finished:
            self.text += self.detokenizer.flush()
        ends = [at for stop in self.stops if (at := self.text.find(stop, max(0, self.shown - len(stop)))) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
        # What could be the beginning of a stop string is held back.
        held = 0 if finished or ends else max((_overlap(self.text, stop) for stop in self.stops), default=0)
        new = self.text[self.shown : len(self.text) - held]
        self.shown += len(new)
        return new, bool(ends)


class Job:
    """A request and its answers in words.

    Args:
        visual_tokens: of its prompt.
        thinking: whether answers begin with reasoning.
        preprocess: seconds that its pictures and prompt took.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, *, visual_tokens: int, thinking: bool, preprocess: float
    ) -> None:
        self.request, self.tokenizer, self.thinking = request, tokenizer, thinking
        self.visual_tokens = visual_tokens
        self.began = time.perf_counter() - preprocess
        self.preprocess = preprocess
        self.total: float | None = None
        self.error: Exception | None = None
        params = request.params
        self.choices = [Choice(IncrementalDetokenizer(tokenizer), params.stop) for _ in range(params.n)]
        self.pieces: deque[str] = deque()  # of the first choice, for a reader that has not taken them yet

    @property
    def is_done(self) -> bool:
        return self.error is not None or all(choice.finish_reason is not None for choice in self.choices)

    def take(self, output: Output) -> tuple[bool, str]:
        """Add news from the engine.

        Returns:
            whether a stop string has ended this choice, which the engine does not know, and the text that is new.
        """
        choice = self.choices[output.index]
        if choice.finish_reason is not None or self.error is not None:
            return False, ""
        if output.error is not None:
            self.error = EngineError(output.error)
            return False, ""
        new, stopped = choice.add(output.tokens, output.finish_reason is not None)
        choice.token_ids += output.tokens
        choice.logprobs += [
            self._logprob(token, *found) for token, found in zip(output.tokens, output.logprobs, strict=False)
        ]
        choice.finish_reason = "stop" if stopped else output.finish_reason
        if self.is_done:
            self.total = time.perf_counter() - self.began
        return stopped and output.finish_reason is None, new

    def _logprob(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        return TokenLogprob(
            token, self._text(token), logprob, tuple((other, self._text(other), value) for other, value in top)
        )

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special=False)

    def answers(self) -> list[Answer]:
        """All of them, or the error that they were lost to."""
        if self.error is not None:
            raise self.error
        assert self.is_done
        return [self._answer(choice) for choice in self.choices]

    def answer(self) -> Answer:
        """The first, with the others as its alternatives."""
        first, *others = self.answers()
        if not others:
            return first
        return Answer(**{**vars(first), "alternatives": tuple(others)})

    def _answer(self, choice: Choice) -> Answer:
        text, reasoning, request = choice.text, None, self.request
        if self.thinking:
            thought, closed, rest = text.partition("</think>")
            reasoning, text = (thought.strip(), rest.lstrip("\n")) if closed else (thought.strip(), "")
        usage = Usage(request.prompt_tokens, self.visual_tokens, len(choice.token_ids), request.cached_tokens)
        assert choice.finish_reason is not None
        return Answer(
            text,
            usage,
            {"preprocess": self.preprocess, **request.timing, "total": self.total or 0.0},
            choice.finish_reason,
            reasoning,
            tuple(choice.token_ids),
            tuple(choice.logprobs) if request.params.logprobs is not None else None,
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
