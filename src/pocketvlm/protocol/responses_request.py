"""OpenAI's Responses: the body of a request → messages and options.

Takes the JSON of POST /v1/responses, with vLLM's additions; gives the arguments of `VLM.chat`. The rules are those of
`chat_request`: null was not given, what would change the answer and is not honoured is refused by its name, what has no
effect on it is accepted. Nothing is stored here: a conversation comes whole, in `input` (`responses_input`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.protocol.chat_request import (
    OPTIONS,
    WITHOUT_EFFECT,
    processor_options,
    template_options,
    tool_options,
    top_logprobs,
)
from pocketvlm.protocol.fields import check, check_fields, given_fields, not_null, only_kinds, refuse_value
from pocketvlm.protocol.responses_input import read_input
from pocketvlm.ranges import as_integer, show_json
from pocketvlm.tools.definitions import check_name, plain_json

# Options of the same name and type, but for `n`: a response has one answer.
RESPONSE_OPTIONS = {name: kind for name, kind in OPTIONS.items() if name != "n"}
# Fields without an effect, as in `chat_request`.
WITHOUT_EFFECT_HERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    **{name: WITHOUT_EFFECT[name] for name in WITHOUT_EFFECT if name not in ("prediction", "modalities", "verbosity")},
    "max_tool_calls": ("integer", ()),  # counts the calls of tools that the server runs: there are none
    "background": ("boolean", (False,)),
    "truncation": ("string", ("disabled",)),
}
_INSTEAD = {
    "messages": "Use input.",
    "max_tokens": "Use max_output_tokens.",
    "max_completion_tokens": "Use max_output_tokens.",
    "response_format": "Use text.format.",
    "reasoning_effort": "Use reasoning.effort.",
    "logprobs": 'Use include ["message.output_text.logprobs"].',
    "n": "Send several requests.",
    **dict.fromkeys(("previous_response_id", "conversation"), "Nothing is stored here: send the whole input."),
    "prompt": "Nothing is stored here: send the text itself.",
}
LOGPROBS = "message.output_text.logprobs"
# What else may be included: of tools that are not here, or what a reasoning item says in plain text anyway.
_INCLUDABLE = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
_LABELS_OF_TOOLS = ("allowed_callers", "defer_loading", "output_schema")
# What a response says back of the request, as it was given.
_ECHOED = ("instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key", "safety_identifier", "user")


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """What a body asks for.

    Attributes:
        model, messages, options, stream: as in `ChatRequest`.
        places: what the body calls each of the messages, for errors.
        echo: fields of the response that repeat the request.
    """

    model: str | None
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    places: list[str]
    stream: bool = False
    echo: dict[str, Any] = field(default_factory=dict)


def parse_response_request(body: Mapping[str, Any]) -> ResponsesRequest:
    """Check a body and translate it.

    Raises:
        ConfigError, PromptError, MissingExtraError: as `parse_chat_completion`.
    """
    given = given_fields(body, RESPONSE_FIELDS, _INSTEAD)
    check_fields(given, WITHOUT_EFFECT_HERE)
    if "input" not in given:
        raise ConfigError("the field 'input' is missing", hint="Give a text or a list of items.")
    options = {name: check(name, given[name], kind) for name, kind in RESPONSE_OPTIONS.items() if name in given}
    if "max_output_tokens" in given:
        options["max_tokens"] = check("max_output_tokens", given["max_output_tokens"], "integer")
    for parse in (_logprobs, _text_and_tools, _reasoning, processor_options):
        options |= parse(given)
    if "logprobs" in options and options.get("enable_thinking"):
        raise ConfigError(f"include {LOGPROBS} and enable_thinking were both given", hint="Give one of them.")
    stream = check("stream", given.get("stream", False), "boolean")
    wanted = only_kinds("stream_options", given.get("stream_options"), ("include_obfuscation",))
    check("stream_options.include_obfuscation", wanted.get("include_obfuscation", False), "boolean")  # of no effect
    instructions = check("instructions", given["instructions"], "string") if "instructions" in given else None
    messages, places = read_input(given["input"], instructions)
    return ResponsesRequest(
        model=check("model", given["model"], "string") if "model" in given else None,
        messages=messages,
        options=options,
        places=places,
        stream=stream,
        echo=_echo(given),
    )


def _echo(given: Mapping[str, Any]) -> dict[str, Any]:
    text, reasoning = given.get("text", {}), given.get("reasoning", {})
    said = {
        **{name: as_integer(given[name]) for name in _ECHOED if name in given},
        "metadata": given.get("metadata", {}),
        "tools": [{"parameters": None, "strict": None, **tool} for tool in given.get("tools", [])],
        "tool_choice": given.get("tool_choice", "auto"),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "text": {"format": text.get("format") or {"type": "text"}},
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "top_logprobs": as_integer(given.get("top_logprobs", 0)),
    }
    # Also what has no effect must be sayable: a body can spell numbers and strings that a response cannot.
    return {name: plain_json(value, name) for name, value in said.items()}


def _logprobs(given: Mapping[str, Any]) -> dict[str, Any]:
    include = check("include", given.get("include", []), "list of strings")
    for name in include:
        if name not in _INCLUDABLE:
            raise ConfigError(f"include has {show_json(name)}, expected one of {', '.join(_INCLUDABLE)}")
    count = top_logprobs(given)
    if LOGPROBS in include:
        return {"logprobs": count}
    if count:
        raise ConfigError(f"top_logprobs={count} means nothing without logprobs", hint=_INSTEAD["logprobs"])
    return {}


def _text_and_tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read `text.format` and the flat form of tools, as `response_format` and the tools of chat completions."""
    text = only_kinds("text", given.get("text"), ("format", "verbosity"))
    if "verbosity" in text and check("text.verbosity", text["verbosity"], "string") != "medium":
        refuse_value("text.verbosity", text["verbosity"], "medium")
    wanted = not_null("text.format", text.get("format", {"type": "text"}))
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(check("tools", given.get("tools", []), "list"))]
    choice = given.get("tool_choice", "auto")
    if isinstance(choice, Mapping):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str) or len(choice) != 2:
            hint = 'Use auto, none, required, or {"type": "function", "name": …}.'
            raise ConfigError(f"tool_choice={show_json(choice)} is not supported", hint=hint)
        choice = {"type": "function", "function": {"name": choice["name"]}}
    parallel = {name: given[name] for name in ("parallel_tool_calls",) if name in given}
    options = tool_options({"tools": tools, "tool_choice": choice, **parallel})
    if wanted.get("type") == "text" and len(wanted) == 1:
        return options
    if "tools" in options:  # under a format no tool could be called
        raise ConfigError("tools and text.format were both given", hint='Give one of them, or tool_choice "none".')
    return {"structured_outputs": _structure(wanted)}


def _structure(wanted: dict[str, Any]) -> Any:
    from pocketvlm.grammar.structured_outputs import StructuredOutputs

    kind = wanted.get("type")
    fields = {"text": (), "json_object": (), "json_schema": ("name", "description", "schema", "strict")}
    if not isinstance(kind, str) or kind not in fields:
        raise ConfigError(f"the type of text.format is {show_json(kind)}", hint=f"It is one of {', '.join(fields)}.")
    for name in wanted:
        if name not in ("type", *fields[kind]):
            raise ConfigError(f"text.format of type {kind} has no field {show_json(name)}")
    if kind == "json_object":
        return StructuredOutputs(json_object=True)
    for name, wanted_kind in (("name", "string"), ("description", "string"), ("strict", "boolean")):
        if name in wanted:
            check(f"text.format.{name}", wanted[name], wanted_kind)
    return StructuredOutputs(json=dict(check("text.format.schema", wanted.get("schema"), "object")))


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """A tool in the form of chat completions."""
    given = not_null(where, tool)
    if given.get("type") != "function":
        raise ConfigError(
            f"{where}: the type is {show_json(given.get('type'))}, and only functions are supported",
            hint='Give {"type": "function", "name": …, "parameters": {…}}.',
        )
    check_name(given.get("name"), f"{where}.name")
    for name, kind in (("parameters", "object"), ("strict", "boolean"), ("description", "string")):
        if name in given:
            check(f"{where}.{name}", given[name], kind)
    for name in given:
        if name not in ("type", "name", "parameters", "strict", "description", *_LABELS_OF_TOOLS):
            raise ConfigError(
                f"{where} has no field {show_json(name)}", hint="A function stands flat: its name beside its type."
            )
    function = {name: given[name] for name in ("name", "description", "parameters", "strict") if name in given}
    return {"type": "function", "function": function}


def _reasoning(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read whether the model thinks. Its thoughts come as they are, so that no summary can be asked for."""
    wanted = only_kinds("reasoning", given.get("reasoning"), ("effort", "summary", "generate_summary"))
    for name in ("summary", "generate_summary"):
        if name in wanted and check(f"reasoning.{name}", wanted[name], "string") != "auto":
            refuse_value(f"reasoning.{name}", wanted[name], "auto")
    return template_options(given, "reasoning.effort", wanted.get("effort"))


# Every field that is read.
RESPONSE_FIELDS = (
    frozenset(RESPONSE_OPTIONS)
    | frozenset(WITHOUT_EFFECT_HERE)
    | {
        *("model", "input", "instructions", "max_output_tokens", "include", "top_logprobs", "text", "tools"),
        *(
            "parallel_tool_calls",
            "tool_choice",
            "reasoning",
            "stream",
            "stream_options",
            "chat_template_kwargs",
            "mm_processor_kwargs",
        ),
    }
)
