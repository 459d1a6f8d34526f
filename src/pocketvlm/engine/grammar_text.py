"""Structured outputs as one grammar: `StructuredOutputs` → text in llguidance's variant of Lark's notation.

Tool calls have the form that the chat template shows and `processing/tool_calls` reads:

    <tool_call>
    <function=NAME>
    <parameter=P>
    VALUE
    </parameter>
    </function>
    </tool_call>

Both outer tags are single control tokens. Parameters come in the order of the schema. The value of a string is raw text
without `</parameter>` and `<tool_call>`, where `format` is an annotation; other values are JSON in one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.engine.structured_outputs import StructuredOutputs, check_name
from pocketvlm.errors import ConfigError

MAX_GRAMMAR = 2 * 1024 * 1024  # characters of what is compiled

# Nothing is forced: a mask then holds every token that may follow, and a long constant is not walked for each token.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# A model that repeats white space would never end.
_JSON_SPACE = {"whitespace_pattern": r"[ \t\r\n]{1,64}"}
_JSON_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

_END = json.dumps("\n</parameter>\n")
_TEXT = r"/(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<tool_call>)(?s:.*)/"
_READ_AS_JSON = r"/\s*([\[{](?s:.*)|-?[0-9]+(\.[0-9]+)?([eE][+\-]?[0-9]+)?|true|false|null|True|False|None)\s*/"
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id")
)
_OF_TOOLS = frozenset(("type", "properties", "required", "additionalProperties", "$defs", "definitions", "strict"))
# Keywords that say of which type a value is where `type` does not.
_TYPE_OF_KEYWORD = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "patternProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("pattern", "minLength", "maxLength", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}
# What a user's grammar may not do, looked for outside its strings, regular expressions and comments.
_LARK_PIECES = re.compile(
    r"""(?://|\#).*|"(?:\\.|[^"\\\n])*"|/(?![*/])(?:\\.|[^/\\\n])+/|(?P<token><)|(?P<option>%llguidance)"""
    r"""|(?P<attribute>\b(?:temperature|stop)\s*=)"""
)


def grammar_text(spec: StructuredOutputs, control_tokens: Mapping[str, int]) -> str:
    """The grammar of `spec`.

    Args:
        control_tokens: ids of `<tool_call>` and `</tool_call>`, for tools.

    Raises:
        ConfigError: the grammar or a tool asks for what cannot be honoured, or there are no tokens for tool calls.
    """
    if spec.json is not None:
        text = f"start: {_json(json.loads(spec.json), _JSON_SPACE)}"
    elif spec.json_object:
        text = f"start: {_json({'type': 'object'}, _JSON_SPACE)}"
    elif spec.regex is not None:
        text = f"start: ANSWER\nANSWER: {_regex(spec.regex)}"
    elif spec.choice is not None:
        text = f"start: ANSWER\nANSWER: {_any(map(_literal, dict.fromkeys(spec.choice)))}"
    elif spec.grammar is not None:
        text = _checked(spec.grammar)
    else:
        text = _tools(json.loads(spec.tools), spec.tool_choice, control_tokens)
    if len(text) > MAX_GRAMMAR:
        raise ConfigError(f"the grammar takes {len(text)} characters written out, at most {MAX_GRAMMAR} are allowed")
    return text + _OPTIONS


def _checked(grammar: str) -> str:
    for piece in _LARK_PIECES.finditer(grammar):
        if piece.lastgroup is not None:
            reasons = {
                "token": "names a control token, which answers may not hold",
                "option": "sets options of the compiler",
                "attribute": "sets temperature or stop, which belong to the request",
            }
            line = grammar.count("\n", 0, piece.start()) + 1
            raise ConfigError(f"line {line} of the grammar {reasons[piece.lastgroup]}", hint="Leave it out.")
    return grammar


def _tools(tools: Sequence[Mapping[str, Any]], choice: str, control_tokens: Mapping[str, int]) -> str:
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
        'calls: call ("\\n" call)*',
        f'call: {opening} "\\n<function=" function "</function>\\n" {closing}',
        f"function: {_any(f'f{index}' for index in range(len(functions)))}",
    ]
    for index, function in enumerate(functions):
        try:
            lines += _function(f"f{index}", function)
        except ConfigError as error:
            raise ConfigError(f"tool {function['name']!r}: {error}") from None
    return "\n".join(lines)


def _function(rule: str, function: Mapping[str, Any]) -> list[str]:
    """Rules of what follows `<function=`, up to `</function>`."""
    schema = function.get("parameters") or {"type": "object"}
    properties, required = schema.get("properties", {}), schema.get("required", [])
    unknown = set(schema) - _OF_TOOLS - _ANNOTATIONS
    if unknown:
        raise ConfigError(f"parameters with {min(unknown)!r} at their top are unsupported", hint="Use properties.")
    if schema.get("type", "object") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        raise ConfigError("parameters are not the schema of an object")
    for name in required:
        if name not in properties:
            raise ConfigError(f"parameter {name!r:.60} is required but not among the properties")
    lines, parts = [], [_literal(f"{function['name']}>\n")]
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for index, (name, of_value) in enumerate(properties.items()):
        check_name(name, "a parameter")
        part = f"{rule}p{index}"
        parts.append(part if name in required else f"{part}?")
        try:
            values = _Values(of_value, definitions, part.upper())
        except ConfigError as error:
            raise ConfigError(f"parameter {name!r}: {error}") from None
        lines += [f"{part}: {_literal(f'<parameter={name}>' + chr(10))} ({_any(values.rules)})", *values.terminals]
    return [f"{rule}: {' '.join(parts)}", *lines]


class _Values:
    """What may stand between `<parameter=P>` and the next tag: raw text where a string is wanted, JSON otherwise.

    A text that would be read as another type of the same schema is no string of it.
    """

    def __init__(self, schema: Any, definitions: Mapping[str, Any], prefix: str) -> None:
        self.definitions, self.texts, self.schemas = definitions, list[str](), list[Any]()
        self._add(schema)
        self.terminals, self.rules = list[str](), list[str]()
        for text in dict.fromkeys(self.texts):
            name = f"{prefix}T{len(self.terminals)}"
            no_json = f" & ~{_READ_AS_JSON}" if self.schemas and not text.startswith('"') else ""
            self.terminals.append(f"{name}: ({text}{no_json}) {_END}")
            self.rules.append(name)
        for inner in self.schemas:
            with_definitions = {**inner, **definitions} if '"$ref"' in json.dumps(inner) else inner
            self.rules.append(f"{_json(with_definitions, _JSON_LINE)} {_END}")
        if not self.rules:
            raise ConfigError("no value satisfies its schema")

    def _add(self, schema: Any, depth: int = 0) -> None:
        if not isinstance(schema, bool | dict) or schema is False or depth > 16:
            raise ConfigError("its schema is none, or refers to itself")
        asserted = {key: schema[key] for key in schema if key not in _ANNOTATIONS} if schema is not True else {}
        if not asserted:
            self.texts.append(_TEXT)
        elif "enum" in asserted or "const" in asserted:
            self._add_constants(asserted)
        elif len(asserted) == 1 and (key := next(iter(asserted))) in ("$ref", "allOf", "anyOf", "oneOf"):
            branches = [self._definition(asserted[key])] if key == "$ref" else asserted[key]
            if not isinstance(branches, list) or not branches:
                raise ConfigError(f"its {key} is no list of schemas")
            if key == "allOf" and len(branches) > 1:
                if not any(isinstance(part, dict) and part.get("type") in ("object", "array") for part in branches):
                    raise ConfigError("its allOf is of no type", hint="Give its first schema the type object or array.")
                self.schemas.append(asserted)
                return
            for branch in branches:
                self._add(branch, depth + 1)
        else:
            self._add_typed(asserted)

    def _add_constants(self, asserted: Mapping[str, Any]) -> None:
        values = asserted.get("enum", [asserted.get("const")])
        if asserted.keys() - {"type"} not in ({"enum"}, {"const"}) or not isinstance(values, list):
            raise ConfigError("its enum or const beside other keywords is unsupported")
        kinds = asserted.get("type")
        strings = [value for value in values if isinstance(value, str)]
        if strings and (kinds is None or "string" in kinds):
            if any("</parameter>" in value or "<tool_call>" in value for value in strings):
                raise ConfigError("a value of its enum holds a tag of tool calls")
            self.texts.append(_any(map(_literal, strings)))
        if others := [value for value in values if not isinstance(value, str)]:
            self.schemas.append({"enum": others, **({"type": kinds} if kinds is not None else {})})

    def _add_typed(self, asserted: Mapping[str, Any]) -> None:
        kinds = asserted.get("type") or sorted({_TYPE_OF_KEYWORD[key] for key in asserted if key in _TYPE_OF_KEYWORD})
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not kinds:
            raise ConfigError(f"its schema with {min(asserted)!r} is unsupported", hint="Give it a type.")
        if "string" in kinds:
            self.texts.append(_string(asserted))
        if others := [kind for kind in kinds if kind != "string"]:
            self.schemas.append({**asserted, "type": others if len(others) > 1 else others[0]})

    def _definition(self, reference: Any) -> Any:
        kind, _, name = str(reference).removeprefix("#/").partition("/")
        named = self.definitions.get(kind)
        if not isinstance(named, dict) or name not in named:
            raise ConfigError(f"it refers to {reference!r:.60}, which is not defined in $defs")
        return named[name]


def _string(schema: Mapping[str, Any]) -> str:
    """A terminal of raw text that satisfies the keywords for strings."""
    text = _TEXT
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if (
        not isinstance(least, int)
        or not isinstance(most, int | None)
        or not 0 <= least <= (least if most is None else most)
    ):
        raise ConfigError("its minLength and maxLength leave no length")
    if least or most is not None:
        text += f" & /(?s:.){{{least},{'' if most is None else most}}}/"
    if (pattern := schema.get("pattern")) is not None:
        if not isinstance(pattern, str):
            raise ConfigError("its pattern is not a string")
        text += f" & {_search(pattern)}"
    return text


def _search(pattern: str) -> str:
    """A pattern matches anywhere in a string, unless anchors at its ends say otherwise."""
    head = "" if pattern.startswith("^") else "(?s:.*)"
    tail = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
    inner = pattern.removeprefix("^")
    inner = inner if tail else inner.removesuffix("$")
    if "|" in inner and not (head and tail):
        # An anchor binds tighter than an alternative at the top, which is not taken apart here.
        depth, at_top = 0, False
        for character in re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "", inner):
            depth += {"(": 1, ")": -1}.get(character, 0)
            at_top = at_top or (character == "|" and depth == 0)
        if at_top:
            raise ConfigError("its pattern has alternatives beside an anchor", hint="Put them in parentheses.")
    return _regex(f"{head}(?:{inner}){tail}")


def _json(schema: Any, options: Mapping[str, Any]) -> str:
    # A schema that is just `true` or `false` has no place for options.
    schema = schema if isinstance(schema, dict) else {"anyOf": [schema]}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"


def _regex(regex: str) -> str:
    """Between slashes; those within, and line breaks, are escaped."""
    escapes = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
    escaped = re.sub(r"(?s)\\.|[/\n\r]", lambda found: escapes.get(found[0][-1], found[0]), regex)
    return f"/{escaped or '(?:)'}/"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _any(alternatives: Any) -> str:
    return " | ".join(alternatives)
