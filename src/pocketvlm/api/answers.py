"""What callers get: an `Answer`, the `Delta`s it comes in, and the error of one that was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pocketvlm.tools.calls import ToolCall


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        visual_tokens: the part of the prompt that is pictures.
        cached_tokens: the part of the prompt that was computed before; two usages that differ in it alone are equal.
    """

    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, as the model gives it: natural logarithms.

    Attributes:
        top: the most likely tokens in its place, best first, as (id, text, log probability).
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer, without reasoning, tool calls, control tokens or stop string.
        usage: tokens in and out.
        timing: seconds a stage: preprocess, queue, encode, prefill, decode (of the steps it took part in), total (wall
            time of this answer).
        finish_reason: "stop" (end of turn or a stop string) or "length" (max_tokens or the context).
        reasoning: what the model thought first, with `enable_thinking=True`; else None.
        token_ids: the generated ids.
        logprobs: of each generated token, where they were asked for.
        tool_calls: what the model wants to call, in order; only where `tools` were given.
        alternatives: the other answers, with `n` above 1.
    """

    text: str
    usage: Usage
    timing: Mapping[str, float] = field(hash=False)
    finish_reason: str
    reasoning: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = field(default=(), hash=False)
    alternatives: tuple[Answer, ...] = ()

    def __str__(self) -> str:
        return self.text


def with_alternatives(answers: Sequence[Answer]) -> Answer:
    """The first of the answers to one request, with the others as its alternatives."""
    first, *others = answers
    return replace(first, alternatives=tuple(others))


@dataclass(frozen=True)
class Delta:
    """What is new in one answer. All deltas of an answer, joined, are the answer.

    Attributes:
        index: which of the request's `n` answers it belongs to.
        text: of the answer; empty while text may still turn out to be the beginning of a stop string or of a call.
        reasoning: what the model thought first, with `enable_thinking=True`; never part of `text`.
        tool_calls: each as soon as it is whole: what only looked like one comes as text.
        logprobs: of the tokens that are new, where they were asked for; their text may come later.
        finish_reason: as in `Answer`, with the last delta of an answer.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = field(default=(), hash=False)
