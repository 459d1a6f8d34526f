"""The body of OpenAI's response object: what was asked for, how it stands, and its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pocketvlm.protocol.chat_response import to_json, token_logprobs

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer, TokenLogprob
    from pocketvlm.tools.calls import ToolCall

# What every response says, as nothing is stored and nothing runs in the background.
_ALWAYS: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "service_tier": "default",
    "store": False,
    "truncation": "disabled",
}


def response_object(
    head: Mapping[str, Any],
    status: str,
    output: Sequence[Mapping[str, Any]] = (),
    *,
    usage: Mapping[str, Any] | None = None,
    completed_at: int | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """Return a response as it stands.

    Args:
        head: `id`, `created_at`, `model`, and what the request said of the answer.
        status: in_progress, completed, incomplete (too many tokens) or failed.
        error: what went wrong, where it failed.
    """
    return {
        **_ALWAYS,
        **head,
        "object": "response",
        "status": status,
        "completed_at": completed_at,
        "error": None if error is None else {"code": "server_error", "message": error},
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": list(output),
        "usage": usage,
    }


def response_usage(answer: Answer, reasoning_tokens: int) -> dict[str, Any]:
    """Return the tokens of an answer."""
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "visual_tokens": usage.visual_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def message_item(id: str) -> dict[str, Any]:
    """Return a message that has no parts yet."""
    return {"id": id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}


def reasoning_item(id: str) -> dict[str, Any]:
    """Return reasoning that has no text yet."""
    return {"id": id, "type": "reasoning", "summary": [], "content": [], "status": "in_progress"}


def call_item(call: ToolCall, number: str) -> dict[str, Any]:
    """Return a call that is whole.

    Args:
        number: what its ids are made of.
    """
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{number}",
        "name": call.name,
        "arguments": to_json(call.arguments),
    }


def output_logprobs(token: TokenLogprob) -> dict[str, Any]:
    """Return a token as `chat_response` has it, but no bytes where they are not known: null is not allowed here."""
    found = token_logprobs(token)
    for one in (found, *found["top_logprobs"]):
        one["bytes"] = one["bytes"] or []
    return found
