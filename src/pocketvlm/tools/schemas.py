"""What JSON schemas of a tool's parameters say: which types a value may have, and what their references stand for.

Takes the `parameters` of a tool; `$ref` is followed within its `$defs` and `definitions`. Parsing of calls and their
grammar (`grammar/tool_grammar`) both read schemas here. A schema is looked at once, however often it is referred to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from pocketvlm.errors import ConfigError

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
# What a value is taken for where its schema names no type: text, unless it looks like JSON of a structure.
UNNAMED = frozenset(("object", "array", "string"))
# Keywords that name a type where `type`, `enum` and `const` do not.
TYPE_OF_KEYWORD: Mapping[str, str] = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "patternProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("pattern", "minLength", "maxLength", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}


class _Types(NamedTuple):
    """Types that a schema allows, and those among all types that it names."""

    allowed: frozenset[str]
    named: frozenset[str] = frozenset()

    @property
    def read(self) -> frozenset[str]:
        return self.allowed & (self.named or UNNAMED)


_DEFINITIONS = ("$defs", "definitions")
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_ALL = _Types(TYPES)
_NONE = _Types(frozenset())


def _find(parameters: Mapping[str, Any], reference: Any) -> Any:
    """Follow a JSON pointer into `$defs` or `definitions`; raise `LookupError` where it is none, or leads nowhere."""
    steps = unquote(reference).split("/") if isinstance(reference, str) else []
    if len(steps) < 3 or steps[0] != "#" or steps[1] not in _DEFINITIONS:
        raise LookupError(reference)
    found: Any = parameters
    for step in steps[1:]:
        if isinstance(found, list | tuple) and step.isascii() and step.isdecimal() and len(step) < 10:
            found = found[int(step)]
        elif isinstance(found, Mapping):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        else:
            raise LookupError(reference)
    return found


class ToolSchema:
    """The schema of one tool's parameters.

    Args:
        parameters: its `parameters`; what is not as JSON Schema has it says nothing.
    """

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters if isinstance(parameters, Mapping) else {}
        # Each schema beside its types, so that it lives and its id stays its own; None where it is being looked at.
        self._found: dict[int, tuple[Any, _Types | None]] = {}
        properties: dict[str, list[Any]] = {}
        for schema in self.conjuncts():
            named = schema.get("properties")
            for name, inner in named.items() if isinstance(named, Mapping) else ():
                properties.setdefault(name, []).append(inner)
        #: Types that the value of each parameter may have.
        self.parameters = {name: self.types(*schemas) for name, schemas in properties.items()}

    def types(self, *schemas: Any) -> frozenset[str]:
        """Return the types of values that are meant by all of `schemas`; "number" stands beside "integer"."""
        return _all_of([self._types(schema) for schema in schemas]).read

    def allowed(self, *schemas: Any) -> frozenset[str]:
        """Return the same as `types`, with those that are valid because nothing is said of them."""
        return _all_of([self._types(schema) for schema in schemas]).allowed

    @property
    def definitions(self) -> dict[str, Any]:
        """The parts of the parameters that references lead to."""
        return {key: self._parameters[key] for key in _DEFINITIONS if key in self._parameters}

    def definition(self, reference: Any) -> Any:
        """Return the schema that `{"$ref": reference}` stands for; raise `ConfigError` where there is none."""
        try:
            return _find(self._parameters, reference)
        except LookupError:
            raise ConfigError(f"it refers to {reference!r:.60}, which is not defined in $defs") from None

    def conjuncts(self) -> Iterator[Mapping[str, Any]]:
        """Yield the schemas that the parameters must all satisfy: themselves, and what `$ref` and `allOf` add."""
        waiting, seen = [self._parameters], set[int]()
        while waiting:
            schema = waiting.pop()
            if isinstance(schema, Mapping) and id(schema) not in seen:
                seen.add(id(schema))
                yield schema
                waiting += reversed([*self._referred(schema), *_branches(schema, "allOf")])

    def _types(self, schema: Any) -> _Types:
        """Find the types of a schema without recursion, as schemas may refer to each other in a chain of any length."""
        waiting = [schema]
        while waiting:
            part = waiting[-1]
            if not isinstance(part, Mapping) or self._known(part) is not None:
                waiting.pop()
            elif id(part) in self._found:
                self._found[id(part)] = part, self._combine(part)
                waiting.pop()
            else:
                self._found[id(part)] = part, None
                inner = [*self._referred(part), *(b for word in _IN_PLACE for b in _branches(part, word))]
                waiting += [branch for branch in inner if id(branch) not in self._found]
        return self._known(schema) or _ALL

    def _known(self, schema: Any) -> _Types | None:
        """Return None for a schema that is being looked at: it refers to itself, which says nothing."""
        if not isinstance(schema, Mapping):
            return _NONE if schema is False else _ALL
        return self._found.get(id(schema), (schema, None))[1]

    def _combine(self, schema: Mapping[str, Any]) -> _Types:
        """Return the types of a schema whose parts are known."""
        found = [_own(schema)]
        found += filter(None, map(self._known, [*self._referred(schema), *_branches(schema, "allOf")]))
        for word in ("anyOf", "oneOf"):
            if branches := list(filter(None, map(self._known, _branches(schema, word)))):
                read = frozenset[str]().union(*(branch.read for branch in branches))
                found.append(_Types(frozenset[str]().union(*(branch.allowed for branch in branches)), read))
        return _all_of(found)

    def _referred(self, schema: Mapping[str, Any]) -> list[Any]:
        try:
            return [_find(self._parameters, schema["$ref"])] if "$ref" in schema else []
        except LookupError:
            return []


def type_of(value: Any) -> str:
    """Return the JSON type of a value; a number without a fraction is an integer, however it is written."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    kinds = ((bool, "boolean"), (int, "integer"), (str, "string"), (Mapping, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "array")


def _own(schema: Mapping[str, Any]) -> _Types:
    """Return what a schema says without its parts."""
    found, named = [_ALL], schema.get("type")
    if isinstance(named, str | list | tuple):
        names = {named} if isinstance(named, str) else {name for name in named if isinstance(name, str)}
        kinds = frozenset(names | {"integer"} if "number" in names else names)
        found.append(_Types(kinds, kinds))
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if isinstance(values, list | tuple):
            kinds = frozenset(map(type_of, values))
            found.append(_Types(kinds, kinds))
    if len(found) == 1:
        kinds = frozenset(TYPE_OF_KEYWORD[word] for word in schema if word in TYPE_OF_KEYWORD)
        return _Types(TYPES, kinds | {"integer"} if "number" in kinds else kinds)
    return _all_of(found)


def _all_of(found: list[_Types]) -> _Types:
    allowed = TYPES.intersection(*(types.allowed for types in found))
    return _Types(allowed, frozenset[str]().union(*(types.named for types in found)))


def _branches(schema: Mapping[str, Any], word: str) -> list[Any]:
    branches = schema.get(word)
    return list(branches) if isinstance(branches, list | tuple) else []
