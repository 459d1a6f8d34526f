"""Deltas → the chunks of OpenAI's streamed chat completion.

The chunks of an answer, joined as clients join them, are the message of `chat_response.chat_completion`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pocketvlm.protocol.chat_response import finish_reason_of, token_logprobs, tool_call, usage_of
from pocketvlm.protocol.view_plan import view_entry

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer, Delta
    from pocketvlm.tools.calls import ToolCall
    from pocketvlm.views import View


class ChatStream:
    """One streamed completion.

    Args:
        id, created, model: as in `chat_completion`.
        count: `n` of the request.
        include_usage: end with a chunk that has the tokens used and no choice.
        include_timings: end with such a chunk that has `timings`, which only clients that ask for them get.
    """

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        count: int = 1,
        include_usage: bool = False,
        include_timings: bool = False,
    ) -> None:
        self._id = id
        self._head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._include_usage, self._include_timings = include_usage, include_timings
        self._calls = [0] * count

    def start(self) -> Iterator[dict[str, Any]]:
        """The first chunk of each answer, which says whose it is."""
        for index in range(len(self._calls)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def add(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The chunks of one delta."""
        index = delta.index
        parts: list[dict[str, Any]] = []
        if delta.reasoning:
            parts.append({"reasoning_content": delta.reasoning})
        if delta.text:
            parts.append({"content": delta.text})
        for call in delta.tool_calls:
            parts += self._call(index, call)
        logprobs = {"content": [token_logprobs(token) for token in delta.logprobs], "refusal": None}
        if delta.logprobs and not parts:
            parts.append({})  # of tokens whose text comes later
        for number, piece in enumerate(parts):
            yield self._chunk(index, piece, logprobs=logprobs if delta.logprobs and number == 0 else None)
        if delta.finish_reason is not None:
            reason = finish_reason_of(delta.finish_reason, has_calls=self._calls[index] > 0)
            yield self._chunk(index, {}, finish_reason=reason)

    def end(self, answers: Sequence[Answer], views: Sequence[View] = ()) -> Iterator[dict[str, Any]]:
        """The last chunk, where it was asked for.

        Args:
            views: of the pictures and videos of the prompt, in its order.
        """
        parts: dict[str, Any] = {"usage": usage_of(answers)} if self._include_usage else {}
        if self._include_timings:
            parts["timings"] = {**answers[0].timing, "views": [view_entry(view) for view in views]}
        if parts:
            yield {**self._head, "choices": [], **parts}

    def _call(self, index: int, call: ToolCall) -> Iterator[dict[str, Any]]:
        """Its name first, then its arguments: what clients wait for, who show a call as it comes."""
        number, self._calls[index] = self._calls[index], self._calls[index] + 1
        whole = tool_call(call, self._id, index, number)
        name, arguments = whole["function"]["name"], whole["function"]["arguments"]
        yield {"tool_calls": [{"index": number, **whole, "function": {"name": name, "arguments": ""}}]}
        yield {"tool_calls": [{"index": number, "function": {"arguments": arguments}}]}

    def _chunk(
        self, index: int, delta: Mapping[str, Any], *, finish_reason: str | None = None, logprobs: Any = None
    ) -> Any:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self._include_usage else {})}
