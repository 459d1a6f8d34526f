"""One request together with its words: outputs of the engine become deltas, and in the end an `Answer`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pocketvlm.api.answers import Answer, Delta, TokenLogprob, Usage, with_alternatives
from pocketvlm.api.choice import Choice, ReasoningSplitter
from pocketvlm.engine.request import Output, Request
from pocketvlm.errors import DeadlineError, EngineError, UnavailableError
from pocketvlm.processing.prompt.tokenizer import IncrementalDetokenizer, Tokenizer
from pocketvlm.tools.calls import ToolCallSplitter


class Job:
    """A request and its answers in words.

    Args:
        visual_tokens: of its prompt.
        thinking: whether answers begin with reasoning.
        tools: definitions of those that answers may call; without them nothing in an answer is a call.
        preprocess: seconds that its pictures and prompt took.

    Attributes:
        deltas: for a reader that has not taken them yet.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        *,
        visual_tokens: int,
        thinking: bool,
        preprocess: float,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.request, self.tokenizer = request, tokenizer
        self.visual_tokens = visual_tokens
        self.began = time.perf_counter() - preprocess
        self.preprocess = preprocess
        self.total: float | None = None
        self.error: Exception | None = None
        params = request.params
        self.choices = [
            Choice(
                IncrementalDetokenizer(tokenizer, skip_special=params.skip_special_tokens),
                params.stop,
                ReasoningSplitter() if thinking else None,
                ToolCallSplitter(tools) if tools else None,
            )
            for _ in range(params.n)
        ]
        self.deltas: deque[Delta] = deque()

    @property
    def is_done(self) -> bool:
        return self.error is not None or all(choice.finish_reason is not None for choice in self.choices)

    def limit(self, tokens: int) -> None:
        """Let each answer have at most so many tokens; for a job that does not run yet."""
        params = self.request.params
        if tokens < params.max_tokens:
            self.request.params = replace(params, max_tokens=tokens)

    def take(self, output: Output) -> Delta | None:
        """Add an output of the engine; returns what is new for readers, None for nothing.

        A delta with a finish reason where the output has none tells of a stop string, which the engine does not know.
        """
        choice = self.choices[output.index]
        if choice.finish_reason is not None or self.error is not None:
            return None
        if output.error is not None:
            self.error = self._error(output)
            return None
        reasoning, text, tool_calls, stopped = choice.add(output.tokens, output.finish_reason is not None)
        logprobs = tuple(
            self._logprob(token, *found) for token, found in zip(output.tokens, output.logprobs, strict=False)
        )
        choice.token_ids += output.tokens
        choice.logprobs += logprobs
        choice.finish_reason = "stop" if stopped else output.finish_reason
        if self.is_done:
            self.total = time.perf_counter() - self.began
        if not (text or reasoning or tool_calls or logprobs or choice.finish_reason):
            return None
        return Delta(output.index, text, reasoning, logprobs, choice.finish_reason, tool_calls)

    def _error(self, output: Output) -> EngineError:
        """What the engine gave up, by its reason: its time is over, the engine is closed, or there was a fault."""
        assert output.error is not None
        if output.finish_reason != "abort":
            return EngineError(output.error)
        ends = self.request.deadline
        is_over = ends is not None and time.monotonic() >= ends
        return (DeadlineError if is_over else UnavailableError)(output.error)

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
        return with_alternatives(self.answers())

    def _answer(self, choice: Choice) -> Answer:
        request = self.request
        usage = Usage(request.prompt_tokens, self.visual_tokens, len(choice.token_ids), request.cached_tokens)
        assert choice.finish_reason is not None
        return Answer(
            choice.text,
            usage,
            {"preprocess": self.preprocess, **request.timing, "total": self.total or 0.0},
            choice.finish_reason,
            choice.reasoning,
            tuple(choice.token_ids),
            tuple(choice.logprobs) if request.params.logprobs is not None else None,
            tuple(choice.tool_calls),
        )
