"""Answers → the body of OpenAI's chat completion, and errors → the body of its errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketvlm.errors import (
    ConfigError,
    DeadlineError,
    MediaError,
    PocketVLMError,
    PromptError,
    QueueFullError,
    UnavailableError,
)

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer, TokenLogprob
    from pocketvlm.tools.calls import ToolCall


_LINE_ENDS = {end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
_MIN_LOGPROB = -9999.0  # what OpenAI writes for "very unlikely"; JSON has no infinity


def chat_completion(answers: Sequence[Answer], *, id: str, created: int, model: str) -> dict[str, Any]:
    """Return the body of a response.

    Args:
        answers: the `n` answers of one request.
        id: such as "chatcmpl-…"; ids of tool calls are made of it.
        created: seconds since 1970.
        model: the name to state.
    """
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(answer, index, id) for index, answer in enumerate(answers)],
        "usage": usage_of(answers),
    }


def usage_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the tokens that all answers of one request took together."""
    first, completion = answers[0].usage, sum(answer.usage.completion_tokens for answer in answers)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "visual_tokens": first.visual_tokens,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


def error_response(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return status and body for a request that failed.

    400 for what a user can mend, 429 and 503 for what may be tried again as it is, 504 for a time that is over, and
    500, without details, for our fault.
    """
    if isinstance(error, DeadlineError):
        return 504, error_body("the time for this request is over", "server_error", "deadline_exceeded")
    if isinstance(error, UnavailableError):
        return 503, error_body("the model takes no requests at the moment", "server_error", "unavailable")
    if isinstance(error, QueueFullError):
        return 429, error_body(str(error), "rate_limit_error", "queue_full")
    if isinstance(error, PocketVLMError):
        codes = ((MediaError, "invalid_media"), (PromptError, "invalid_prompt"), (ConfigError, "invalid_value"))
        code = next((name for kind, name in codes if isinstance(error, kind)), "invalid_request")
        return 400, error_body(str(error), "invalid_request_error", code)
    message = f"this request failed inside pocketvlm ({type(error).__name__})"
    return 500, error_body(message, "server_error", "internal_error")


def to_json(body: Any) -> str:
    """Return a body as strict JSON; raise `ValueError` for NaN and infinities, which no client could read.

    What ends a line beside the line feed is escaped: clients that read a stream by lines, as httpx does, would break it
    there.
    """
    text = json.dumps(body, ensure_ascii=False, allow_nan=False)
    if not text.isascii():
        for end, escaped in _LINE_ENDS.items():
            text = text.replace(end, escaped)
    return text


def error_body(message: str, kind: str, code: str) -> dict[str, Any]:
    """Return OpenAI's body of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _choice(answer: Answer, index: int, id: str) -> dict[str, Any]:
    calls = answer.tool_calls
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not answer.text else answer.text,
        "refusal": None,
    }
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if calls:
        message["tool_calls"] = [tool_call(call, id, index, number) for number, call in enumerate(calls)]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_of(answer),
        "finish_reason": finish_reason_of(answer.finish_reason, has_calls=bool(calls)),
    }


def tool_call(call: ToolCall, id: str, index: int, number: int) -> dict[str, Any]:
    """Return the call of this number in the answer of this index, as a message has it."""
    return {
        "id": f"call_{id.removeprefix('chatcmpl-')}_{index}_{number}",
        "type": "function",
        "function": {"name": call.name, "arguments": to_json(call.arguments)},
    }


def finish_reason_of(reason: str, *, has_calls: bool) -> str:
    """Return why an answer ended, in OpenAI's words.

    Derived from what the body holds: the reason never announces calls that are not there. A cut-off stays one.
    """
    return "tool_calls" if has_calls and reason == "stop" else reason


def logprobs_of(answer: Answer) -> dict[str, Any] | None:
    """Return how likely each token of an answer was; None where that was not asked for."""
    if answer.logprobs is None:
        return None
    return {"content": [token_logprobs(token) for token in answer.logprobs], "refusal": None}


def token_logprobs(token: TokenLogprob) -> dict[str, Any]:
    """Return one generated token with the best ones at its place."""
    best = [_logprob(text, logprob) for _, text, logprob in token.top]
    return {**_logprob(token.token, token.logprob), "top_logprobs": best}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    # U+FFFD stands for a piece of a character: its bytes are not known here, and OpenAI's null says just that.
    known = None if "\ufffd" in token else list(token.encode())
    # Compared this way round, what is no number comes out as very unlikely too.
    return {"token": token, "logprob": min(logprob, 0.0) if logprob > _MIN_LOGPROB else _MIN_LOGPROB, "bytes": known}
