"""A grammar of tool calls: OpenAI tool definitions → text in llguidance's variant of Lark's notation.

Calls have the form that `tools/calls` shows and reads. Both outer tags are single control tokens. Parameters
come in the order of the schema; `tool_values` has their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.grammar.lark import any_of, literal
from pocketvlm.grammar.tool_values import ANNOTATIONS, ToolValue
from pocketvlm.tools.definitions import check_name
from pocketvlm.tools.schemas import ToolSchema

_OF_TOOLS = frozenset(("type", "properties", "required", "additionalProperties", "strict", "$ref", "allOf"))


def tool_grammar(
    tools: Sequence[Mapping[str, Any]], choice: str, control_tokens: Mapping[str, int], *, parallel: bool = True
) -> str:
    """Return the grammar of answers that may, or must, call tools.

    Args:
        tools: checked definitions (`tools/definitions`).
        choice: "auto", "required" or the name of the only tool to call.
        control_tokens: ids by name.
        parallel: whether there may be more than one call.

    Raises:
        ConfigError: a tool asks for what cannot be honoured, or the vocabulary has no tokens for calls.
    """
    try:
        opening, closing = (f"<[{control_tokens[name]}]>" for name in ("<tool_call>", "</tool_call>"))
    except KeyError:
        raise ConfigError("this vocabulary has no tokens for tool calls", hint="Leave tools out.") from None
    functions = [tool["function"] for tool in tools]
    if choice not in ("auto", "required"):
        functions = [function for function in functions if function["name"] == choice]
    lines = [
        "start: text calls?\ntext: BESIDE?\nBESIDE: /(?s:.+)/ & ~/(?s:.*)<tool_call>(?s:.*)/"
        if choice == "auto"
        else "start: calls",
        'calls: call ("\\n" call)*' if parallel else "calls: call",
        f'call: {opening} "\\n<function=" function "</function>\\n" {closing}',
        f"function: {any_of(f'f{index}' for index in range(len(functions)))}",
    ]
    for index, function in enumerate(functions):
        try:
            lines += _function(f"f{index}", function)
        except PocketVLMError as error:
            raise ConfigError(f"tool {function['name']!r}: {error}") from None
    return "\n".join(lines)


def _function(rule: str, function: Mapping[str, Any]) -> list[str]:
    """Return the rules of what follows `<function=`, up to `</function>`."""
    tool_schema = ToolSchema(function.get("parameters"))
    properties, required = _properties(tool_schema)
    lines, parts = [], [literal(f"{function['name']}>\n")]
    for index, (name, schemas) in enumerate(properties.items()):
        check_name(name, "a parameter")
        part = f"{rule}p{index}"
        parts.append(part if name in required else f"{part}?")
        try:
            values = ToolValue(schemas, tool_schema, part.upper())
        except ConfigError as error:
            raise ConfigError(f"parameter {name!r}: {error}") from None
        lines += [f"{part}: {literal(f'<parameter={name}>' + chr(10))} ({any_of(values.rules)})", *values.terminals]
    return [f"{rule}: {' '.join(parts)}", *lines]


def _properties(tool_schema: ToolSchema) -> tuple[dict[str, list[Any]], list[str]]:
    """Return each parameter with all the schemas it must satisfy, and which of them are required."""
    properties, required = dict[str, list[Any]](), list[str]()
    conjuncts = list(tool_schema.conjuncts())
    for schema in conjuncts:
        unknown = set(schema) - _OF_TOOLS - ANNOTATIONS
        if unknown:
            raise ConfigError(f"parameters with {min(unknown)!r} at their top are unsupported", hint="Use properties.")
        named, needed = schema.get("properties", {}), schema.get("required", [])
        if schema.get("type", "object") != "object" or not isinstance(named, dict) or not isinstance(needed, list):
            raise ConfigError("parameters are not the schema of an object")
        if "$ref" in schema:
            tool_schema.definition(schema["$ref"])
        if len(conjuncts) > 1 and schema.get("additionalProperties", True) is not True:
            raise ConfigError(
                "parameters with additionalProperties beside $ref or allOf are unsupported", hint="Leave it out."
            )
        for name, inner in named.items():
            properties.setdefault(name, []).append(inner)
        required += map(str, needed)
    for name in required:
        if name not in properties:
            raise ConfigError(f"parameter {name!r:.60} is required but not among the properties")
    return properties, required
