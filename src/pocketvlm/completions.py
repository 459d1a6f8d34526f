"""OpenAI's chat completions: the body of a request → messages and options, answers → the body of the response.

Takes the JSON of POST /v1/chat/completions, with vLLM's additions; gives the arguments of `VLM.chat`, and back. A field
that is null was not given. Each field is checked, and one that could not be honoured is refused by its name. Accepted
without effect are only labels (`user`, `safety_identifier`, `prompt_cache_key`, `metadata`) and values that ask for
nothing but what happens anyway: `store` false, `service_tier` auto or default, `modalities` ["text"],
`parallel_tool_calls` true.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketvlm.engine.sampling_params import MAX_LOGPROBS
from pocketvlm.errors import ConfigError, MediaError, PocketVLMError, PromptError, QueueFullError
from pocketvlm.processing.messages import check_tools
from pocketvlm.processing.tool_calls import parse_tool_calls

if TYPE_CHECKING:
    from pocketvlm.answers import Answer, TokenLogprob

_LEAST_LOGPROB = -9999.0  # what OpenAI writes for "very unlikely"; JSON has no infinity

# What each option of a processor is, in one word of `_check`. vLLM's field for them is mm_processor_kwargs.
MM_PROCESSOR_KWARGS = {
    "downsample_mode": "string or list of strings",
    "auto_token_budget": "number",
    "max_slice_nums": "integer",
    "max_num_frames": "integer",
    "stack_frames": "integer",
    "use_image_id": "boolean",
    "use_video_id": "boolean",
    "video_max_slice_nums": "integer",
}
# Fields that are options of the same name and type.
_OPTIONS = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), "number"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), "number"),
    **dict.fromkeys(("top_k", "n", "seed", "min_tokens"), "integer"),
    "ignore_eos": "boolean",
    "stop": "string or list of strings",
    "stop_token_ids": "list of integers",
}
# Fields without an effect: what they are, and the values they may have where only these ask for nothing.
_WITHOUT_EFFECT: dict[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key"), ("string", ())),
    "metadata": ("object of strings", ()),
    "store": ("boolean", (False,)),
    "service_tier": ("string", ("auto", "default")),
    "modalities": ("list of strings", (["text"],)),
    "parallel_tool_calls": ("boolean", (True,)),
}
_INSTEAD = {
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "reasoning_effort": 'Use chat_template_kwargs {"enable_thinking": true}.',
    "enable_thinking": 'Use chat_template_kwargs {"enable_thinking": true}.',
    "best_of": "Use n.",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), "Use structured_outputs."),
    **dict.fromkeys(MM_PROCESSOR_KWARGS, "Use mm_processor_kwargs."),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a body asks for.

    Attributes:
        model: the name it gives, or None.
        messages: in OpenAI's format; their parts are checked by the processor.
        options: arguments of `VLM.chat`, only those that were given. `tools` are those the model may call.
        stream: the answer should come piece by piece.
        include_usage: the stream should end with the tokens used.
    """

    model: str | None
    messages: list[Any]
    options: dict[str, Any]
    stream: bool = False
    include_usage: bool = False


def parse_chat_completion(body: Mapping[str, Any]) -> ChatRequest:
    """Check a body and translate it.

    Raises:
        ConfigError: a field that is missing, unknown, of another type, or cannot be honoured; the message names it.
        PromptError: tools or template options that no prompt can be made with.
        MissingExtraError: what structured outputs need is not installed.
    """
    if not isinstance(body, Mapping):
        raise ConfigError(f"the body is {_show(body)}, expected a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in FIELDS:
            raise ConfigError(f"the field {_show(name)} is not supported", hint=_INSTEAD.get(name, "Leave it out."))
    for name, (kind, allowed) in _WITHOUT_EFFECT.items():
        if name in given:
            _check(name, given[name], kind)
            if allowed and given[name] not in allowed:
                _refuse_value(name, given[name], *allowed)
    if "messages" not in given:
        raise ConfigError("the field 'messages' is missing", hint="Give at least one user message.")
    options = {name: _check(name, given[name], kind) for name, kind in _OPTIONS.items() if name in given}
    for parse in (_max_tokens, _logprobs, _logit_bias, _structured_outputs, _tools, _template, _processor):
        options |= parse(given)
    stream, include_usage = _stream(given)
    return ChatRequest(
        model=_check("model", given["model"], "string") if "model" in given else None,
        messages=[_as_system(message) for message in _check("messages", given["messages"], "list")],
        options=options,
        stream=stream,
        include_usage=include_usage,
    )


def chat_completion(
    answers: Sequence[Answer],
    *,
    id: str,
    created: int,
    model: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The body of a response.

    Args:
        answers: the `n` answers of one request.
        id: such as "chatcmpl-…"; ids of tool calls are made of it.
        created: seconds since 1970.
        model: the name to state.
        tools: those of the request, `options["tools"]`; without them nothing in a text is a call.
    """
    first, completion = answers[0].usage, sum(answer.usage.completion_tokens for answer in answers)
    usage = {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "visual_tokens": first.visual_tokens,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(answer, index, id, tools) for index, answer in enumerate(answers)],
        "usage": usage,
    }


def error_response(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for a request that failed.

    400 for what a user can mend, 429 for what may be tried again as it is, and 500, without details, for our fault.
    """
    if isinstance(error, QueueFullError):
        return 429, _error(str(error), "rate_limit_error", "queue_full")
    if isinstance(error, PocketVLMError):
        codes = ((MediaError, "invalid_media"), (PromptError, "invalid_prompt"), (ConfigError, "invalid_value"))
        code = next((name for kind, name in codes if isinstance(error, kind)), "invalid_request")
        return 400, _error(str(error), "invalid_request_error", code)
    message = f"this request failed inside pocketvlm ({type(error).__name__})"
    return 500, _error(message, "server_error", "internal_error")


def _error(message: str, kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _choice(answer: Answer, index: int, id: str, tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    content, calls = parse_tool_calls(answer.text, tools) if tools else (answer.text, ())
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not content else content,
        "refusal": None,
    }
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if calls:
        stem = f"call_{id.removeprefix('chatcmpl-')}_{index}"
        message["tool_calls"] = [
            {
                "id": f"{stem}_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for number, call in enumerate(calls)
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_of(answer),
        "finish_reason": "tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason,
    }


def logprobs_of(answer: Answer) -> dict[str, Any] | None:
    """How likely each token of an answer was; None where that was not asked for."""
    if answer.logprobs is None:
        return None
    return {"content": [_token(token) for token in answer.logprobs], "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    """One generated token with the best ones at its place."""
    best = [_logprob(text, logprob) for _, text, logprob in token.top]
    return {**_logprob(token.token, token.logprob), "top_logprobs": best}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    # U+FFFD stands for a piece of a character: its bytes are not known here, and OpenAI's null says just that.
    known = None if "\ufffd" in token else list(token.encode())
    return {"token": token, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": known}


def _max_tokens(given: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    values = [_check(name, given[name], "integer") for name in names]
    if len(set(values)) > 1:
        raise ConfigError(f"max_completion_tokens={values[0]} and max_tokens={values[1]} differ", hint="Give one.")
    return {"max_tokens": values[0]} if values else {}


def _logprobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's flag and number as vLLM's one number: how many beside the token itself."""
    wanted = _check("logprobs", given.get("logprobs", False), "boolean")
    if "top_logprobs" not in given:
        return {"logprobs": 0} if wanted else {}
    count = _check("top_logprobs", given["top_logprobs"], "integer")
    if not 0 <= count <= MAX_LOGPROBS:
        raise ConfigError(f"top_logprobs={count} is not an integer of 0 to {MAX_LOGPROBS}")
    if not wanted:
        raise ConfigError(f"top_logprobs={count} means nothing without logprobs", hint="Set logprobs to true.")
    return {"logprobs": count}


def _logit_bias(given: Mapping[str, Any]) -> dict[str, Any]:
    if "logit_bias" not in given:
        return {}
    biases: dict[int, float] = {}
    for key, bias in _check("logit_bias", given["logit_bias"], "object").items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
            raise ConfigError(f"logit_bias has the key {_show(key)}, expected a token id such as '151645'")
        biases[int(key)] = _check(f"logit_bias[{key!r}]", bias, "number")
    return {"logit_bias": biases}


def _structured_outputs(given: Mapping[str, Any]) -> dict[str, Any]:
    """`response_format` is OpenAI's way to ask for structure, `structured_outputs` vLLM's."""
    wanted = _not_null("response_format", given.get("response_format", {"type": "text"}))
    structure = _only_kinds(
        "structured_outputs", given.get("structured_outputs"), ("json", "regex", "choice", "grammar")
    )
    if wanted.get("type") != "text":
        if structure:
            raise ConfigError("response_format and structured_outputs were both given", hint="Give one of them.")
        from pocketvlm.engine.structured_outputs import StructuredOutputs

        return {"structured_outputs": StructuredOutputs.from_response_format(wanted)}
    if set(wanted) != {"type"}:
        raise ConfigError(f"response_format of type text has no field {_show(next(k for k in wanted if k != 'type'))}")
    if "structured_outputs" not in given:
        return {}
    if len(structure) != 1:
        raise ConfigError(
            f"structured_outputs has {len(structure)} kinds, expected one of json, regex, choice and grammar"
        )
    from pocketvlm.engine.structured_outputs import StructuredOutputs

    return {"structured_outputs": StructuredOutputs(**structure)}


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tools that may not be called are not shown to the model at all.

    Calls that must be made, and those of strict tools, are held to a grammar.
    """
    tools = check_tools(given.get("tools"))
    choice = given.get("tool_choice", "auto")
    named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, Mapping) else choice
    # A tool of the name of a mode could not be told from it further on.
    if not isinstance(name, str) or (name in ("auto", "none", "required")) == isinstance(choice, Mapping):
        hint = 'Use auto, none, required, or {"type": "function", "function": {"name": …}}.'
        raise ConfigError(f"tool_choice={_show(choice)} is unknown", hint=hint)
    if tools is None:
        if "tool_choice" in given and choice != "none":
            raise ConfigError(f"tool_choice={_show(choice)} means nothing without tools", hint="Leave it out.")
        return {}
    if choice == "none":
        return {}
    for field in ("response_format", "structured_outputs"):  # under either no tool could be called
        if field in given and given[field].get("type") != "text":
            raise ConfigError(f"tools and {field} were both given", hint='Give one of them, or tool_choice "none".')
    if choice == "auto" and not _any_strict(tools):
        return {"tools": tools}
    from pocketvlm.engine.structured_outputs import StructuredOutputs

    return {"tools": tools, "structured_outputs": StructuredOutputs(tools=tools, tool_choice=name)}


def _any_strict(tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether calls of a tool must keep to its schema, which only a grammar sees to."""
    is_any = False
    for index, tool in enumerate(tools):
        if (strict := tool["function"].get("strict")) is not None:
            is_any |= _check(f"tools[{index}].function.strict", strict, "boolean")
    return is_any


def _template(given: Mapping[str, Any]) -> dict[str, Any]:
    if "chat_template_kwargs" not in given:
        return {}
    from pocketvlm.processing.chat import check_template_kwargs

    return check_template_kwargs(_not_null("chat_template_kwargs", given["chat_template_kwargs"]))


def _processor(given: Mapping[str, Any]) -> dict[str, Any]:
    field = "mm_processor_kwargs"
    options = _only_kinds(field, given.get(field), MM_PROCESSOR_KWARGS)
    return {name: _check(f"{field}.{name}", value, MM_PROCESSOR_KWARGS[name]) for name, value in options.items()}


def _stream(given: Mapping[str, Any]) -> tuple[bool, bool]:
    stream = _check("stream", given.get("stream", False), "boolean")
    options = _only_kinds("stream_options", given.get("stream_options"), ("include_usage",))
    if "stream_options" in given and not stream:
        raise ConfigError("stream_options means nothing without stream", hint="Set stream to true.")
    return stream, _check("stream_options.include_usage", options.get("include_usage", False), "boolean")


def _as_system(message: Any) -> Any:
    """OpenAI's newer name for the system's role is developer."""
    return (
        {**message, "role": "system"}
        if isinstance(message, Mapping) and message.get("role") == "developer"
        else message
    )


def _not_null(field: str, value: Any) -> dict[str, Any]:
    return {name: item for name, item in _check(field, value, "object").items() if item is not None}


def _only_kinds(field: str, value: Any, known: Iterable[str]) -> dict[str, Any]:
    """The entries of an object of options, each of them known; empty where it was not given."""
    if value is None:
        return {}
    found, names = _not_null(field, value), tuple(known)
    for name in found:
        if name not in names:
            raise ConfigError(f"{field}: {_show(name)} is unknown, expected one of {', '.join(names)}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(kind: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(kind, value))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": _is_string,
    "number": _is_number,
    "integer": _is_integer,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, Mapping),
    "object of strings": lambda value: isinstance(value, Mapping) and all(map(_is_string, value.values())),
    "list": lambda value: isinstance(value, list | tuple),
    "list of strings": lambda value: _is_list_of(_is_string, value),
    "list of integers": lambda value: _is_list_of(_is_integer, value),
    "string or list of strings": lambda value: _is_string(value) or _is_list_of(_is_string, value),
}


def _check(name: str, value: Any, kind: str) -> Any:
    """`value` if it is of a kind of `_KINDS`."""
    if not _KINDS[kind](value):
        raise ConfigError(f"{name} is {_show(value)}, expected {'an' if kind[0] in 'aio' else 'a'} {kind}")
    return value


def _refuse_value(name: str, value: Any, *allowed: Any) -> None:
    raise ConfigError(f"{name}={_show(value)} is not supported, expected {' or '.join(map(repr, allowed))}")


def _show(value: Any) -> str:
    """`value` for a message, in at most 60 characters of ASCII."""
    if isinstance(value, str):
        value = value[:60]
    text = ascii(value) if isinstance(value, str | int | float | None) else f"of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


# Every field that is read.
FIELDS = (
    frozenset(_OPTIONS)
    | frozenset(_WITHOUT_EFFECT)
    | {
        *("model", "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "logit_bias"),
        *("response_format", "structured_outputs", "tools", "tool_choice", "stream", "stream_options"),
        *("chat_template_kwargs", "mm_processor_kwargs"),
    }
)
