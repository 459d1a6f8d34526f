"""OpenAI's chat completions: the body of a request → messages and options.

Takes the JSON of POST /v1/chat/completions, with vLLM's additions; gives the arguments of `VLM.chat`. A field that is
null was not given. Each field is checked. One that would change the answer and is not honoured is refused by its name.
One without an effect on the answer is accepted: labels (`user`, `metadata`), wishes about storage, billing and speed
(`store`, `service_tier`, `prediction`), and values that ask for what happens anyway (`verbosity` medium).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketvlm.engine.sampling.params import MAX_LOGPROBS
from pocketvlm.errors import ConfigError
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.protocol.fields import check, check_fields, given_fields, not_null, only_kinds
from pocketvlm.ranges import show_json
from pocketvlm.tools.definitions import check_tools

# vLLM's field for the options of a processor is mm_processor_kwargs.
MM_PROCESSOR_KWARGS = PICTURE_OPTIONS
# Fields that are options of the same name and type.
OPTIONS = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), "number"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), "number"),
    **dict.fromkeys(("top_k", "n", "seed", "min_tokens"), "integer"),
    **dict.fromkeys(("ignore_eos", "skip_special_tokens"), "boolean"),
    "stop": "string or list of strings",
    "stop_token_ids": "list of integers",
}
# Fields without an effect: what they are, and the values they may have where only these ask for nothing.
WITHOUT_EFFECT: dict[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"), ("string", ())),
    "metadata": ("object of strings", ()),
    "store": ("boolean", ()),
    "service_tier": ("string", ()),
    "prediction": ("object", ()),
    "modalities": ("list of strings", (["text"],)),
    "verbosity": ("string", ("medium",)),
}
_INSTEAD = {
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
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
        include_timings: the stream should end with the seconds that each stage took, and the views of its pictures.
    """

    model: str | None
    messages: list[Any]
    options: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    include_timings: bool = False


def parse_chat_completion(body: Mapping[str, Any]) -> ChatRequest:
    """Check a body and translate it.

    Raises:
        ConfigError: a field that is missing, unknown, of another type, or cannot be honoured; the message names it.
        PromptError: tools or template options that no prompt can be made with.
        MissingExtraError: what structured outputs need is not installed.
    """
    given = given_fields(body, FIELDS, _INSTEAD)
    check_fields(given, WITHOUT_EFFECT)
    if "messages" not in given:
        raise ConfigError("the field 'messages' is missing", hint="Give at least one user message.")
    options = {name: check(name, given[name], kind) for name, kind in OPTIONS.items() if name in given}
    for parse in (
        _max_tokens,
        _logprobs,
        _logit_bias,
        _structured_outputs,
        tool_options,
        _thinking,
        processor_options,
    ):
        options |= parse(given)
    stream, include_usage, include_timings = _stream(given)
    return ChatRequest(
        model=check("model", given["model"], "string") if "model" in given else None,
        messages=list(check("messages", given["messages"], "list")),
        options=options,
        stream=stream,
        include_usage=include_usage,
        include_timings=include_timings,
    )


def _max_tokens(given: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    values = [check(name, given[name], "integer") for name in names]
    if len(set(values)) > 1:
        raise ConfigError(f"max_completion_tokens={values[0]} and max_tokens={values[1]} differ", hint="Give one.")
    return {"max_tokens": values[0]} if values else {}


def _logprobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read OpenAI's flag and number as vLLM's one number: how many beside the token itself."""
    wanted = check("logprobs", given.get("logprobs", False), "boolean")
    if "top_logprobs" not in given:
        return {"logprobs": 0} if wanted else {}
    count = top_logprobs(given)
    if not wanted and count == 0:
        return {}
    if not wanted:
        raise ConfigError(f"top_logprobs={count} means nothing without logprobs", hint="Set logprobs to true.")
    return {"logprobs": count}


def top_logprobs(given: Mapping[str, Any]) -> int:
    """Read how many of the best tokens are wanted at each place; 0 where it was not given."""
    count: int = check("top_logprobs", given.get("top_logprobs", 0), "integer")
    if not 0 <= count <= MAX_LOGPROBS:
        raise ConfigError(f"top_logprobs={count} is not an integer of 0 to {MAX_LOGPROBS}")
    return count


def _logit_bias(given: Mapping[str, Any]) -> dict[str, Any]:
    if "logit_bias" not in given:
        return {}
    biases: dict[int, float] = {}
    for key, bias in check("logit_bias", given["logit_bias"], "object").items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
            raise ConfigError(f"logit_bias has the key {show_json(key)}, expected a token id such as '151645'")
        biases[int(key)] = check(f"logit_bias[{key!r}]", bias, "number")
    return {"logit_bias": biases}


_STRUCTURES, _ONE_LINE = ("json", "regex", "choice", "grammar"), "disable_any_whitespace"


def _structured_outputs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read `response_format`, OpenAI's way to ask for structure, or `structured_outputs`, vLLM's."""
    wanted = not_null("response_format", given.get("response_format", {"type": "text"}))
    structure = only_kinds("structured_outputs", given.get("structured_outputs"), (*_STRUCTURES, _ONE_LINE))
    if wanted.get("type") != "text":
        if structure:
            raise ConfigError("response_format and structured_outputs were both given", hint="Give one of them.")
        from pocketvlm.grammar.structured_outputs import StructuredOutputs

        return {"structured_outputs": StructuredOutputs.from_response_format(wanted)}
    if set(wanted) != {"type"}:
        raise ConfigError(
            f"response_format of type text has no field {show_json(next(k for k in wanted if k != 'type'))}"
        )
    if "structured_outputs" not in given:
        return {}
    kinds = len(structure.keys() - {_ONE_LINE})
    if kinds != 1:
        raise ConfigError(f"structured_outputs has {kinds} kinds, expected one of json, regex, choice and grammar")
    from pocketvlm.grammar.structured_outputs import StructuredOutputs

    return {"structured_outputs": StructuredOutputs(**structure)}


def tool_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read tools; those that may not be called are not shown to the model at all.

    Calls that must be made, those of strict tools and those that must be alone are held to a grammar.
    """
    tools = check_tools(given.get("tools"))
    parallel = check("parallel_tool_calls", given.get("parallel_tool_calls", True), "boolean")
    choice = given.get("tool_choice", "auto")
    named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, Mapping) else choice
    # A tool of the name of a mode could not be told from it further on.
    if not isinstance(name, str) or (name in ("auto", "none", "required")) == isinstance(choice, Mapping):
        hint = 'Use auto, none, required, or {"type": "function", "function": {"name": …}}.'
        raise ConfigError(f"tool_choice={show_json(choice)} is unknown", hint=hint)
    if tools is None:
        # Clients that give no tools, or an empty list, still say "auto" or "none": nothing is asked for then.
        if choice not in ("auto", "none"):
            raise ConfigError(f"tool_choice={show_json(choice)} means nothing without tools", hint="Leave it out.")
        return {}
    if choice == "none":
        return {}
    for field in ("response_format", "structured_outputs"):  # under either no tool could be called
        if field in given and given[field].get("type") != "text":
            raise ConfigError(f"tools and {field} were both given", hint='Give one of them, or tool_choice "none".')
    if parallel and choice == "auto" and not any(tool["function"].get("strict") for tool in tools):
        return {"tools": tools}
    from pocketvlm.grammar.structured_outputs import StructuredOutputs

    return {
        "tools": tools,
        "structured_outputs": StructuredOutputs(tools=tools, tool_choice=name, parallel_tool_calls=parallel),
    }


def _thinking(given: Mapping[str, Any]) -> dict[str, Any]:
    return template_options(given, "reasoning_effort", given.get("reasoning_effort"))


def template_options(given: Mapping[str, Any], field: str, effort: Any) -> dict[str, Any]:
    """Read whether the model thinks: vLLM's option of the template, or OpenAI's effort, honoured as "none" alone.

    Args:
        field: what the body calls the effort.
        effort: None where it was not given.
    """
    from pocketvlm.processing.prompt.template import check_template_kwargs

    options = dict(check_template_kwargs(not_null("chat_template_kwargs", given.get("chat_template_kwargs", {}))))
    if effort is None:
        return options
    if check(field, effort, "string") != "none":
        raise ConfigError(
            f"{field}={show_json(effort)} is not supported, expected 'none'",
            hint='For an answer after thinking use chat_template_kwargs {"enable_thinking": true}.',
        )
    if options.get("enable_thinking"):
        raise ConfigError(f"{field}='none' and enable_thinking=True contradict each other", hint="Give one.")
    return {**options, "enable_thinking": False}


def processor_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read `mm_processor_kwargs`: how pictures and videos are seen."""
    field = "mm_processor_kwargs"
    options = only_kinds(field, given.get(field), MM_PROCESSOR_KWARGS)
    return {name: check(f"{field}.{name}", value, MM_PROCESSOR_KWARGS[name]) for name, value in options.items()}


def _stream(given: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Read whether to stream, and what to end with: usage, as OpenAI has it, and timings, an addition of ours."""
    stream = check("stream", given.get("stream", False), "boolean")
    names = ("include_usage", "include_timings", "include_obfuscation")  # the last is of no effect
    options = only_kinds("stream_options", given.get("stream_options"), names)
    usage, timings, _ = (check(f"stream_options.{name}", options.get(name, False), "boolean") for name in names)
    if "stream_options" in given and not stream:
        raise ConfigError("stream_options means nothing without stream", hint="Set stream to true.")
    return stream, usage, timings


# Every field that is read.
FIELDS = (
    frozenset(OPTIONS)
    | frozenset(WITHOUT_EFFECT)
    | {
        *("model", "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "logit_bias"),
        *("response_format", "structured_outputs", "tools", "tool_choice", "stream", "stream_options"),
        "parallel_tool_calls",
        *("chat_template_kwargs", "mm_processor_kwargs", "reasoning_effort"),
    }
)
