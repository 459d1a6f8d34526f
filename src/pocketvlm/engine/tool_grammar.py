"""A grammar of tool calls: OpenAI tool definitions → text in llguidance's variant of Lark's notation.

Calls have the form that the chat template shows and `processing/tool_calls` reads:

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

from pocketvlm.engine.lark import any_of, inline_json, literal, regex
from pocketvlm.engine.structured_outputs import check_name
from pocketvlm.errors import ConfigError

_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_END = literal("\n</parameter>\n")
_TEXT = r"/(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<tool_call>)(?s:.*)/"
_INTEGER = r"-?(0|[1-9][0-9]*)"
_NUMBER = _INTEGER + r"(\.[0-9]+)?([eE][+\-]?[0-9]+)?"
# JSON of a type without further demands, and what `processing/tool_calls` reads as it.
_WORDS = {
    "null": '"null"',
    "boolean": '"true" | "false"',
    "integer": f"/{_INTEGER}/",
    "number": f"/{_NUMBER}/",
}
_READ = {
    "null": "null|None",
    "boolean": "true|false|True|False",
    **dict.fromkeys(("integer", "number"), _NUMBER),
    "array": r"\[(?s:.*)",
    "object": r"\{(?s:.*)",
}
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
_NUMERIC = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))


def tool_grammar(tools: Sequence[Mapping[str, Any]], choice: str, control_tokens: Mapping[str, int]) -> str:
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
        f"function: {any_of(f'f{index}' for index in range(len(functions)))}",
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
    lines, parts = [], [literal(f"{function['name']}>\n")]
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for index, (name, of_value) in enumerate(properties.items()):
        check_name(name, "a parameter")
        part = f"{rule}p{index}"
        parts.append(part if name in required else f"{part}?")
        try:
            values = _Values(of_value, definitions, part.upper())
        except ConfigError as error:
            raise ConfigError(f"parameter {name!r}: {error}") from None
        lines += [f"{part}: {literal(f'<parameter={name}>' + chr(10))} ({any_of(values.rules)})", *values.terminals]
    return [f"{rule}: {' '.join(parts)}", *lines]


class _Values:
    """What may stand between `<parameter=P>` and the next tag: raw text where a string is wanted, JSON otherwise.

    A text that would be read as another type of the same schema is no string of it.
    """

    def __init__(self, schema: Any, definitions: Mapping[str, Any], prefix: str) -> None:
        self.definitions, self.texts, self.schemas = definitions, list[str](), list[Any]()
        self._add(schema)
        self.terminals, self.rules = list[str](), list[str]()
        schemas, words, read = self._beside_text() if self.texts else (self.schemas, [], set[str]())
        no_json = f" & ~/\\s*({'|'.join(sorted(read))})\\s*/" if read else ""
        terminals = [f"({text}){no_json}" for text in dict.fromkeys(self.texts)] + words
        if terminals:
            self.terminals.append(f"{prefix}T: ({any_of(terminals)}) {_END}")
            self.rules.append(f"{prefix}T")
        if schemas:
            inner = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
            with_definitions = {**inner, **definitions} if '"$ref"' in json.dumps(inner) else inner
            self.rules.append(f"{inline_json(with_definitions, _ONE_LINE)} {_END}")

    def _beside_text(self) -> tuple[list[Any], list[str], set[str]]:
        """The schemas taken apart into those that text cannot be taken for, terminals of the others, and what no text
        may look like. The lexer takes the longest match: no JSON must begin like a text that goes on."""
        schemas, words, read = list[Any](), list[str](), set[str]()
        for schema in self.schemas:
            if "enum" in schema:
                for value in schema["enum"]:
                    kind = _kind_of(value)
                    read.add(_READ[kind])
                    if kind in ("object", "array"):
                        schemas.append({"const": value})
                    else:
                        words.append(literal(json.dumps(value)))
                continue
            kinds = schema.get("type", ["array", "object"])
            for kind in [kinds] if isinstance(kinds, str) else kinds:
                if kind not in _READ:
                    raise ConfigError(f"{kind!r:.40} is no type")
                of_kind = {**schema, "type": kind} if "type" in schema else schema
                if kind in _WORDS and _NUMERIC.isdisjoint(schema):
                    read.add(_READ[kind])
                    words.append(_WORDS[kind])
                else:
                    read.add(_READ[kind] if kind in ("array", "object") else r"[\-0-9](?s:.*)")
                    if of_kind not in schemas:
                        schemas.append(of_kind)
        return schemas, words, read

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
            texts, schemas = len(self.texts), len(self.schemas)
            for branch in branches:
                self._add(branch, depth + 1)
            if key == "oneOf":
                self._check_one_of(texts, schemas, asserted)
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
            self.texts.append(any_of(map(literal, strings)))
        others = [value for value in values if not isinstance(value, str)]
        if kinds is not None:
            others = [v for v in others if _kind_of(v) in kinds or (_kind_of(v) == "integer" and "number" in kinds)]
        if others:
            self.schemas.append({"enum": others})
        elif not strings:
            raise ConfigError("no value satisfies its schema")

    def _add_typed(self, asserted: Mapping[str, Any]) -> None:
        kinds = asserted.get("type") or sorted({_TYPE_OF_KEYWORD[key] for key in asserted if key in _TYPE_OF_KEYWORD})
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not kinds:
            raise ConfigError(f"its schema with {min(asserted)!r} is unsupported", hint="Give it a type.")
        if "string" in kinds:
            self.texts.append(_string(asserted))
        if others := [kind for kind in kinds if kind != "string"]:
            self.schemas.append({**asserted, "type": others if len(others) > 1 else others[0]})

    def _check_one_of(self, texts: int, schemas: int, asserted: Mapping[str, Any]) -> None:
        """Branches of distinct types are a union; otherwise the compiler says whether they are."""
        kinds = [schema.get("type") for schema in self.schemas[schemas:]]
        is_union = all(isinstance(k, str) for k in kinds) and len(
            {"number" if k == "integer" else k for k in kinds}
        ) == len(kinds)
        if len(self.texts) > texts + 1 or (len(self.texts) > texts and not is_union):
            raise ConfigError("its oneOf has branches that may overlap", hint="Use anyOf.")
        if not is_union:
            self.schemas[schemas:] = [dict(asserted)]

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
    return regex(f"{head}(?:{inner}){tail}")


def _kind_of(value: Any) -> str:
    """The JSON type of a value that is no string."""
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "array")
