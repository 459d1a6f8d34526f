"""Deltas and answers → the JSON objects of Ollama's chat and generate, and errors → its error.

The objects of a stream, joined as clients join them, are the one object of a request without a stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pocketvlm.protocol.chat_response import token_logprobs

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer, Delta, TokenLogprob
    from pocketvlm.tools.calls import ToolCall

_DATA_URL = re.compile(r"^messages\[(\d+)\]\.content\[(\d+)\]: The data: URL( has white space in front)?")
_DATA_URL_HINT = re.compile(r"\. Expected data:image/png;base64,\s*\.\.\.\s*$")
# Our names of options → Ollama's.
_OURS = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}
_NAMES = re.compile(rf"^({'|'.join(_OURS)})(?==)")


class OllamaAnswer:
    """The objects of one answer.

    Args:
        kind: "chat" or "generate".
        model: the name to state.
        id: ids of tool calls are made of it.
    """

    def __init__(self, kind: str, model: str, id: str = "") -> None:
        self._kind, self._model, self._id = kind, model, id
        self._calls = 0

    def piece(self, delta: Delta) -> dict[str, Any] | None:
        """The object of one delta; None where it says nothing that `end` does not."""
        if not (delta.text or delta.reasoning or delta.tool_calls or delta.logprobs):
            return None
        return self._object(delta.text, delta.reasoning, delta.tool_calls, delta.logprobs) | {"done": False}

    def end(self, answer: Answer) -> dict[str, Any]:
        """The last object of a stream: why it ended, and what it took."""
        return self._object("", "", (), ()) | figures(answer)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The one object of an answer that is not streamed."""
        said = self._object(answer.text, answer.reasoning or "", answer.tool_calls, answer.logprobs or ())
        return said | figures(answer)

    def nothing(self, reason: str) -> dict[str, Any]:
        """The object of a request that asks for no answer, "load" or "unload"."""
        return self._object("", "", (), ()) | {"done": True, "done_reason": reason}

    def _object(
        self, text: str, thinking: str, calls: Sequence[ToolCall], logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            said["tool_calls"] = [self._call(call) for call in calls]
        if self._kind == "chat":
            said = {"message": {"role": "assistant", "content": text, **said}}
        else:
            said = {"response": text, **said}
        if logprobs:
            said["logprobs"] = [token_logprobs(token) for token in logprobs]
        return {"model": self._model, "created_at": timestamp(), **said}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        number, self._calls = self._calls, self._calls + 1
        function = {"index": number, "name": call.name, "arguments": call.arguments}
        return {"id": f"call_{self._id}_{number}", "function": function}


def figures(answer: Answer) -> dict[str, Any]:
    """Why an answer ended and what it took: tokens, and durations in nanoseconds. The model was loaded before."""
    timing, usage = answer.timing, answer.usage
    stage = {name: timing.get(name, 0.0) for name in ("encode", "prefill", "decode", "total")}
    return {
        "done": True,
        "done_reason": answer.finish_reason,
        "total_duration": _nanoseconds(stage["total"]),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(stage["encode"] + stage["prefill"]),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(stage["decode"]),
    }


def _nanoseconds(seconds: float) -> int:
    return max(1, round(seconds * 1e9))  # clients divide by it


def timestamp(seconds: float | None = None) -> str:
    """A moment, now or in seconds since 1970, as RFC 3339 has it."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def ollama_error(message: str, *, has_messages: bool = True) -> dict[str, str]:
    """The body of an error, in the names that Ollama has for what was translated on the way.

    Args:
        has_messages: whether the request has a list of messages, which images are named within.
    """
    found = _DATA_URL.match(message)
    if found is not None:
        place = f"messages[{found[1]}].images[{found[2]}]" if has_messages else f"images[{found[2]}]"
        message = _DATA_URL_HINT.sub("", f"{place}{found[3] or ''}{message[found.end() :]}")
    return {"error": _NAMES.sub(lambda name: _OURS[name[0]], message)}
