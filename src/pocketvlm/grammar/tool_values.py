"""A grammar of one value in a tool call: its schema → terminals and rules in llguidance's variant of Lark's notation.

The value of a string is raw text without `</parameter>` and `<tool_call>`, where `format` is an annotation; others are
JSON in one line. A text that would be read as another type of the same schema is no string of it. Where no string is
wanted the compiler gets the schema as it is; where one is, `$ref`, `allOf`, `anyOf` and `oneOf` are resolved here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.lark import ONE_LINE, any_of, inline_json, literal, regex
from pocketvlm.tools.schemas import TYPE_OF_KEYWORD, ToolSchema, type_of

MAX_CASES = 256  # that a schema of text and other types falls into
_MAX_DEPTH = 16
_END = literal("\n</parameter>\n")
_TEXT = r"/(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<tool_call>)(?s:.*)/"
_INTEGER = r"-?(0|[1-9][0-9]*)"
_NUMBER = _INTEGER + r"(\.[0-9]+)?([eE][+\-]?[0-9]+)?"
# JSON of a type without further demands, and what `tools/calls` reads as it.
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
ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$comment", "$schema", "$id", "$defs", "definitions"),
    )
)
# Demands on values of any type, which are not held to beside text.
_UNSUPPORTED = frozenset(("not", "if", "$dynamicRef", "$recursiveRef"))

Part = Mapping[str, Any]  # keywords of a schema, annotations and references left out


class ToolValue:
    """What may stand between `<parameter=P>` and the next tag.

    Args:
        schemas: all of which the value satisfies.
        tool_schema: of the tool, for `$ref`.
        prefix: of the names of its terminals.

    Raises:
        ConfigError: the schemas cannot be honoured.
    """

    def __init__(self, schemas: Sequence[Any], tool_schema: ToolSchema, prefix: str) -> None:
        self._schema = tool_schema
        self._texts, self._json, self._cases = list[str](), list[dict[str, Any]](), 0
        parts = self._parts(schemas)
        kinds = self._schema.types(*parts)
        if not kinds:
            raise ConfigError("no value satisfies its schema")
        if "string" in kinds:
            self._add(parts)
        else:
            self._json.append(_as_json(kinds, parts))
        if not self._texts and not self._json:
            raise ConfigError("no value satisfies its schema")
        self.terminals, self.rules = list[str](), list[str]()
        whole, words, read = self._beside_text() if self._texts else (self._json, [], set[str]())
        no_json = f" & ~/\\s*({'|'.join(sorted(read))})\\s*/" if read else ""
        terminals = [f"({text}){no_json}" for text in dict.fromkeys(self._texts)] + words
        if terminals:
            self.terminals.append(f"{prefix}T: ({any_of(terminals)}) {_END}")
            self.rules.append(f"{prefix}T")
        if whole:
            inner = whole[0] if len(whole) == 1 else {"anyOf": whole}
            if '"$ref"' in json.dumps(inner):
                inner = {**inner, **tool_schema.definitions}
            self.rules.append(f"{inline_json(inner, ONE_LINE, is_alone=False)} {_END}")

    def _parts(self, schemas: Sequence[Any]) -> list[Part]:
        """Return what `schemas` come to, `$ref` and `allOf` taken apart; those that say nothing are left out."""
        parts, done = list[Part](), set[int]()

        def take(schema: Any, path: tuple[int, ...]) -> None:
            if id(schema) in path or len(path) > _MAX_DEPTH:
                raise ConfigError("its schema refers to itself, or to others in a long chain")
            if not isinstance(schema, bool | dict) or schema is False:
                raise ConfigError("its schema is none")
            if schema is True or id(schema) in done:
                return
            done.add(id(schema))
            own = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
            inner = list[Any]()
            if (reference := own.pop("$ref", None)) is not None:
                inner.append(self._schema.definition(reference))
            inner += _branches("allOf", own.pop("allOf")) if "allOf" in own else []
            if own:
                parts.append(own)
            for part in inner:
                take(part, (*path, id(schema)))

        for schema in schemas:
            take(schema, ())
        return parts

    def _add(self, parts: Sequence[Part], depth: int = 0) -> None:
        """Add the texts and the JSON that satisfy `parts`: unions are distributed over what stands beside them."""
        self._cases += 1
        if depth > _MAX_DEPTH or self._cases > MAX_CASES:
            raise ConfigError("its schema refers to itself, or has too many cases")
        for index, part in enumerate(parts):
            for word in ("anyOf", "oneOf"):
                if word in part:
                    rest = {key: value for key, value in part.items() if key != word}
                    self._add_union(
                        word, part[word], [*parts[:index], *([rest] if rest else []), *parts[index + 1 :]], depth
                    )
                    return
        if not parts:
            self._texts.append(_TEXT)
        elif any("enum" in part or "const" in part for part in parts):
            self._add_constants(parts)
        else:
            self._add_typed(parts)

    def _add_union(self, word: str, branches: Any, beside: list[Part], depth: int) -> None:
        texts, jsons, found = len(self._texts), len(self._json), list[frozenset[str]]()
        every = _branches(word, branches)
        for branch in every:
            parts = [*beside, *self._parts([branch])]
            if self._schema.types(*parts):
                self._add(parts, depth + 1)
            found.append(frozenset(map(_family, self._schema.allowed(*parts))))
        kinds = frozenset[str]().union(*found)
        if word == "anyOf" or len(kinds) == sum(map(len, found)):
            return
        # Of numbers and structures alone the compiler says whether the branches overlap.
        if len(self._texts) > texts or not kinds.isdisjoint(("string", "null", "boolean")):
            raise ConfigError("its oneOf has branches that may overlap", hint="Use anyOf.")
        self._json[jsons:] = [_as_json(kinds, [*beside, {"oneOf": every}])]

    def _add_constants(self, parts: Sequence[Part]) -> None:
        if any(key in _UNSUPPORTED or key in TYPE_OF_KEYWORD for part in parts for key in part):
            raise ConfigError("its enum or const beside other keywords is unsupported")
        lists = [part["enum"] for part in parts if "enum" in part]
        lists += [[part["const"]] for part in parts if "const" in part]
        if not all(isinstance(values, list) for values in lists):
            raise ConfigError("its enum is no list")
        kinds, first = self._schema.types(*parts), [(_key(value), value) for value in lists[0]]
        keys = set.intersection(*({_key(value) for value in values} for values in lists))
        values = [value for key, value in first if key in keys and type_of(value) in kinds]
        strings = [value for value in values if isinstance(value, str)]
        others = [value for value in values if not isinstance(value, str)]
        if any("</parameter>" in value or "<tool_call>" in value for value in strings):
            raise ConfigError("a value of its enum holds a tag of tool calls")
        if strings:
            self._texts.append(any_of(map(literal, strings)))
        if others:
            self._json.append({"enum": others})

    def _add_typed(self, parts: Sequence[Part]) -> None:
        if unknown := {key for part in parts for key in part} & _UNSUPPORTED:
            raise ConfigError(f"its schema with {min(unknown)!r} is unsupported", hint="Leave it out.")
        kinds = self._schema.types(*parts)
        if "string" in kinds:
            self._texts.append(_string(parts))
        for kind in sorted(kinds - {"string"} - ({"integer"} if "number" in kinds else set())):
            of_kind = [_of_kind(part, kind) for part in parts]
            self._json.append(_as_json(frozenset((kind,)), [part for part in of_kind if part]))

    def _beside_text(self) -> tuple[list[Any], list[str], set[str]]:
        """Take the schemas apart into those that text cannot be taken for, terminals of the others, and what no text
        may look like. The lexer takes the longest match: no JSON must be the prefix of a text that goes on."""
        whole, words, read = list[Any](), list[str](), set[str]()
        for schema in self._json:
            if "enum" in schema:
                for value in schema["enum"]:
                    kind = type_of(value)
                    read.add(_READ[kind])
                    if kind in ("object", "array"):
                        whole.append({"const": value})
                    else:
                        words.append(literal(json.dumps(value)))
            elif isinstance(schema["type"], str) and schema["type"] in _WORDS and len(schema) == 1:
                read.add(_READ[schema["type"]])
                words.append(_WORDS[schema["type"]])
            else:
                named = schema["type"]
                for kind in [named] if isinstance(named, str) else named:
                    read.add(_READ[kind] if kind in ("array", "object") else r"[\-0-9](?s:.*)")
                if schema not in whole:
                    whole.append(schema)
        return whole, words, read


def _as_json(kinds: frozenset[str], parts: Sequence[Part]) -> dict[str, Any]:
    """Return one schema of `kinds` that satisfies `parts`."""
    names = sorted(kinds - {"integer"} if "number" in kinds else kinds)
    named = {"type": names if len(names) > 1 else names[0]}
    return {**parts[0], **named} if len(parts) == 1 else {**named, **({"allOf": list(parts)} if parts else {})}


def _family(kind: str) -> str:
    return "number" if kind == "integer" else kind


def _of_kind(part: Part, kind: str) -> dict[str, Any]:
    """Return the keywords of `part` that speak of a kind; the compiler judges further ones of structures."""
    otherwise = kind if kind in ("array", "object") else None
    return {k: v for k, v in part.items() if k != "type" and TYPE_OF_KEYWORD.get(k, otherwise) == _family(kind)}


def _key(value: Any) -> str:
    """Return what is the same for equal JSON values alone: 1 and 1.0 are equal, 1 and true are not."""
    integral = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if integral else value, sort_keys=True)


def _branches(word: str, branches: Any) -> list[Any]:
    if not isinstance(branches, list) or not branches:
        raise ConfigError(f"its {word} is no list of schemas")
    return branches


def _string(parts: Sequence[Part]) -> str:
    """Return a terminal of raw text that satisfies the keywords for strings."""
    text = _TEXT
    for part in parts:
        minimum, maximum = part.get("minLength", 0), part.get("maxLength")
        if (
            not isinstance(minimum, int)
            or not isinstance(maximum, int | None)
            or not 0 <= minimum <= (minimum if maximum is None else maximum)
        ):
            raise ConfigError("its minLength and maxLength leave no length")
        if minimum or maximum is not None:
            text += f" & /(?s:.){{{minimum},{'' if maximum is None else maximum}}}/"
        if (pattern := part.get("pattern")) is not None:
            if not isinstance(pattern, str):
                raise ConfigError("its pattern is not a string")
            text += f" & {_search(pattern)}"
    return text


def _search(pattern: str) -> str:
    """Return a terminal that a pattern matches anywhere in, unless anchors at its ends say otherwise."""
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
