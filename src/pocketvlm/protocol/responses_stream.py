"""Deltas → the events of OpenAI's streamed response, and the whole response.

Both come of the same items: reasoning, messages and calls, in the order in which the model wrote them. One is open at a
time; a call comes whole. The events of a stream, joined, are the response that its last event holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pocketvlm.protocol.responses_response import (
    call_item,
    message_item,
    output_logprobs,
    reasoning_item,
    response_object,
)

if TYPE_CHECKING:
    from pocketvlm.api.answers import Delta, TokenLogprob
    from pocketvlm.tools.calls import ToolCall

# Type of an item → type of its only part, which names its events as well.
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseStream:
    """One streamed response.

    Args:
        head: of `response_object`; its id begins with "resp_".
        has_logprobs: whether they were asked for.
    """

    def __init__(self, head: Mapping[str, Any], *, has_logprobs: bool = False) -> None:
        self._head, self._has_logprobs = dict(head), has_logprobs
        self._number = str(head["id"]).removeprefix("resp_")
        self._output: list[dict[str, Any]] = []
        self._is_open = False  # whether the last item may still grow
        self._waiting: list[TokenLogprob] = []  # of tokens whose text has not come yet
        self._reason = "abort"
        self._sequence = 0

    def start(self) -> Iterator[dict[str, Any]]:
        """The events before there is any output."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=response_object(self._head, "in_progress"))

    def add(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The events of one delta."""
        self._waiting += delta.logprobs if self._has_logprobs else ()
        if delta.reasoning:
            yield from self._grow("reasoning", delta.reasoning)
        if delta.text:
            yield from self._grow("message", delta.text)
        for call in delta.tool_calls:
            yield from self._call(call)
        if delta.finish_reason is not None:
            self._reason = delta.finish_reason
            if not self._output:  # clients look for a message, also where it is empty
                yield from self._begin("message")
            yield from self._close("incomplete" if delta.finish_reason == "length" else "completed")

    def end(self, usage: Mapping[str, Any], *, now: int) -> Iterator[dict[str, Any]]:
        """The last event."""
        whole = self.whole(usage, now=now)
        yield self._event(f"response.{whole['status']}", response=whole)

    def fail(self, message: str) -> Iterator[dict[str, Any]]:
        """The last event of a stream that was lost; what was there stays."""
        yield from self._close("incomplete")
        yield self._event("response.failed", response=self._failed(message))

    def whole(self, usage: Mapping[str, Any], *, now: int) -> dict[str, Any]:
        """The response, once the answer has ended.

        Args:
            now: seconds since 1970.
        """
        if self._reason == "abort":
            return self._failed("the answer was given up before its end")
        status = "incomplete" if self._reason == "length" else "completed"
        return response_object(self._head, status, self._copy(), usage=usage, completed_at=now)

    def _failed(self, message: str) -> dict[str, Any]:
        return response_object(self._head, "failed", self._copy(), error=message)

    def _copy(self) -> list[dict[str, Any]]:
        return copy.deepcopy(self._output)

    def _grow(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        """Add to the last item, if it is of this kind and open, or to a new one."""
        if not (self._is_open and self._output[-1]["type"] == kind):
            yield from self._close("completed")
            yield from self._begin(kind)
        yield self._delta(text)

    def _begin(self, kind: str) -> Iterator[dict[str, Any]]:
        prefix, new = {"message": ("msg", message_item), "reasoning": ("rs", reasoning_item)}[kind]
        item = new(f"{prefix}_{self._number}_{len(self._output)}")
        yield self._added(item)
        self._is_open = True
        part: dict[str, Any] = {"type": _PARTS[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        item["content"].append(part)
        yield self._of_item("response.content_part.added", content_index=0, part=copy.deepcopy(part))

    def _added(self, item: dict[str, Any]) -> dict[str, Any]:
        self._output.append(item)
        index = len(self._output) - 1
        return self._event("response.output_item.added", output_index=index, item=copy.deepcopy(item))

    def _delta(self, text: str) -> dict[str, Any]:
        item = self._output[-1]
        (part,) = item["content"]
        part["text"] += text
        fields: dict[str, Any] = {}
        if item["type"] == "message":
            fields["logprobs"] = [output_logprobs(token) for token in self._waiting]
            part["logprobs"] += fields["logprobs"]
        self._waiting = []
        return self._of_item(f"response.{part['type']}.delta", content_index=0, delta=text, **fields)

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        if not self._is_open:
            return
        item = self._output[-1]
        if self._waiting and item["type"] == "message":
            yield self._delta("")  # of tokens without a text, such as the one that ended it
        (part,) = item["content"]
        item["status"], self._is_open = status, False
        fields = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
        yield self._of_item(f"response.{part['type']}.done", content_index=0, text=part["text"], **fields)
        yield self._of_item("response.content_part.done", content_index=0, part=copy.deepcopy(part))
        yield self._done()

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        self._waiting = []  # tokens of a call are no part of a message
        yield from self._close("completed")
        whole = call_item(call, f"{self._number}_{len(self._output)}")
        arguments = whole["arguments"]
        yield self._added({**whole, "status": "in_progress", "arguments": ""})
        yield self._of_item("response.function_call_arguments.delta", delta=arguments)
        name = {"name": call.name}
        yield self._of_item("response.function_call_arguments.done", arguments=arguments, **name)
        self._output[-1] = whole
        yield self._done()

    def _done(self) -> dict[str, Any]:
        index = len(self._output) - 1
        return self._event("response.output_item.done", output_index=index, item=copy.deepcopy(self._output[-1]))

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event about the last item."""
        return self._event(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}
