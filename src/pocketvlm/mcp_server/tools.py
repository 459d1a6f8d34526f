"""The tools look, read and extract: what they are for, the arguments of a call → messages and options, its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp.types import CallToolResult, TextContent, Tool, ToolAnnotations

from pocketvlm.api.answers import Answer
from pocketvlm.api.vlm import question_messages
from pocketvlm.errors import PromptError
from pocketvlm.prompts import packaged
from pocketvlm.protocol.fields import check
from pocketvlm.ranges import Range, as_integer, show_json

MAX_TOKENS = Range(int, 1, 32768)
DEFAULT_TOKENS = {"look": 1024, "read": 4096, "extract": 4096}

_MEDIUM = "path of a file in one of the server's folders, or a data: URL; an https: URL where the server fetches"
_MEDIA = {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": f"pictures or videos: {_MEDIUM}"}
_COMMON = {
    "fine": {"type": "boolean", "description": "look four times as closely: for small print; slower (default false)"},
    "max_tokens": {"type": "integer", "minimum": 1, "description": "longest answer"},
}


def _tool(name: str, title: str, text: str, required: Mapping[str, Any], **more: Any) -> Tool:
    schema = {
        "type": "object",
        "properties": {**required, **more, **_COMMON},
        "required": [*required],
        "additionalProperties": False,
    }
    hints = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    return Tool(name=name, title=title, description=text, input_schema=schema, annotations=hints)


TOOLS = {
    tool.name: tool
    for tool in (
        _tool(
            "look",
            "Look at pictures or a video",
            "Answer a question about one or several pictures, or a video.",
            {"media": _MEDIA, "question": {"type": "string", "description": "what to find out"}},
        ),
        _tool(
            "read",
            "Read a picture's text",
            "Transcribe the text of a picture: a page, a receipt, a sign, a screenshot.",
            {"image": {"type": "string", "description": f"the picture: {_MEDIUM}"}},
        ),
        _tool(
            "extract",
            "Extract data from pictures",
            "Fill in a JSON schema from pictures or a video; the answer keeps to the schema.",
            {"media": _MEDIA, "schema": {"type": "object", "description": "JSON schema of the answer"}},
            instructions={"type": "string", "description": "what to extract, in words"},
        ),
    )
}


@dataclass(frozen=True)
class Call:
    """What a call asks of the model: messages and options of `VLM.chat`.

    Attributes:
        file_bytes: of files that were read for it, and are in its messages.
    """

    name: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    file_bytes: int = 0


def read_call(name: str, arguments: Mapping[str, Any] | None, open_media: Callable[[Sequence[str]], list[Any]]) -> Call:
    """Check the arguments of a call and open its media.

    Args:
        open_media: what a caller named → what `VLM.chat` takes.

    Raises:
        PocketVLMError: an argument is missing, unknown, of another type, or names what may not be read.
    """
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    schema = TOOLS[name].input_schema
    for key in given:
        if key not in schema["properties"]:
            known = ", ".join(schema["properties"])
            raise PromptError(f"{name} has no argument {show_json(key)}", hint=f"Its arguments: {known}.")
    for key in schema["required"]:
        if key not in given:
            raise PromptError(f"{name} needs the argument {key}", hint=f"It is the {_about(name, key)}.")
    options: dict[str, Any] = {
        "max_tokens": MAX_TOKENS.check("max_tokens", as_integer(given.get("max_tokens", DEFAULT_TOKENS[name]))),
        "downsample_mode": "4x" if check("fine", given.get("fine", False), "boolean") else None,
    }
    if name == "read":
        media, question = [check("image", given["image"], "string")], packaged()["text"]
    else:
        media = list(check("media", given["media"], "list of strings"))
        question = check("question", given["question"], "string") if name == "look" else _extraction(given, options)
    if not media:
        raise PromptError("media is empty", hint="Name at least one picture.")
    opened = open_media(media)
    size = sum(len(one) for one in opened if isinstance(one, bytes))
    return Call(name, question_messages(opened, question), options, size)


def _about(name: str, key: str) -> str:
    about: str = TOOLS[name].input_schema["properties"][key]["description"]
    return about


def _extraction(given: Mapping[str, Any], options: dict[str, Any]) -> str:
    """The question of an extraction, whose schema goes to the options."""
    from pocketvlm.grammar.structured_outputs import StructuredOutputs  # it may need an extra

    schema = check("schema", given["schema"], "object")
    options["structured_outputs"] = StructuredOutputs(json=schema, disable_any_whitespace=True)
    instructions = check("instructions", given.get("instructions", ""), "string").strip() or packaged()["extract"]
    return f"{instructions}\n{json.dumps(schema, ensure_ascii=False)}"


def result_of(call: Call, answer: Answer) -> CallToolResult:
    """The answer as a result; one that was cut off is an error where half of it is none."""
    if call.name == "extract":
        if answer.finish_reason != "stop":
            return failed(
                f"the answer was cut off after {answer.usage.completion_tokens} tokens, before its JSON was whole. "
                "Bound the schema (additionalProperties: false, required, maxLength, maxItems), or raise max_tokens."
            )
        value = json.loads(answer.text)
        # Before 2026 the protocol has objects alone there.
        structured = value if isinstance(value, dict) else None
        return CallToolResult(content=[_text(answer.text)], structured_content=structured)
    content = [_text(answer.text)]
    if answer.finish_reason == "length":
        content.append(_text(f"(cut off after {answer.usage.completion_tokens} tokens; raise max_tokens for more)"))
    return CallToolResult(content=list[Any](content))


def failed(message: str) -> CallToolResult:
    """The result of a call that could not be answered: one line, which the agent reads."""
    return CallToolResult(content=[_text(message)], is_error=True)


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def listed() -> Sequence[Tool]:
    return list(TOOLS.values())
