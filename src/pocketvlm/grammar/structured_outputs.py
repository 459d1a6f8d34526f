"""What answers must be: JSON of a schema, text of a regular expression, a choice, a grammar, or calls of tools.

Takes what users give, under vLLM's names or as OpenAI's `response_format`; gives a checked and hashable
`StructuredOutputs`. Whether it can be met at all is for `grammar/compiler` to say, which compiles it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.json_schema import subschemas
from pocketvlm.json_text import HALF_A_CHARACTER, is_text
from pocketvlm.ranges import show_json
from pocketvlm.tools.definitions import MAX_DEPTH, MAX_TOOLS_TEXT, check_tools

MAX_TEXT = 64 * 1024  # bytes of a schema or a grammar
MAX_REGEX = 4096  # bytes
MAX_CHOICES = 1000
KINDS = ("json", "json_object", "regex", "choice", "grammar", "tools")


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """Exactly one kind of structure; the names are vLLM's.

    Args:
        json: a JSON schema, as a dict or as text; kept as text. Properties are answered in the schema's order.
        json_object: any JSON object.
        regex: a regular expression that the whole answer matches; no look-around, no back-references.
        choice: the answer is one of these.
        grammar: a context-free grammar in Lark's notation, whose first rule is `start`.
        tools: OpenAI tool definitions, as a list or as text; kept as text.
        tool_choice: "auto" (text, then calls if any), "required" (calls) or the name of the only tool to call.
        parallel_tool_calls: whether there may be more than one call.
        disable_any_whitespace: JSON on one line, with one space at most behind a comma or a colon: fewer tokens, and
            small models that fall into white space cannot.

    Raises:
        ConfigError: not exactly one kind, a value of the wrong type, or one over its limit.
        PromptError: tools that are malformed or over a limit.
    """

    json: Any = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    tools: Any = None
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool):
            raise ConfigError(f"json_object is {show_json(self.json_object)}, expected true or false")
        if not isinstance(self.disable_any_whitespace, bool):
            raise ConfigError(
                f"disable_any_whitespace is {show_json(self.disable_any_whitespace)}, expected true or false"
            )
        # Compared by identity: 0 is no way to say nothing, and arrays do not compare as a whole.
        given = [name for name in KINDS if getattr(self, name) is not None and getattr(self, name) is not False]
        # A schema may be `false`, which nothing satisfies; it is given all the same.
        if self.json is False:
            given.insert(0, "json")
        if len(given) != 1:
            raise ConfigError(
                f"structured outputs were asked for as {' and '.join(given) or 'nothing'}, expected exactly one",
                hint=f"Give one of {', '.join(KINDS)}.",
            )
        if self.disable_any_whitespace and not {"json", "json_object"} & set(given):
            raise ConfigError(f"disable_any_whitespace means nothing for {given[0]}", hint="Leave it out.")
        if self.json is not None:
            self._check_json()
        elif self.regex is not None:
            _check_text("regex", self.regex, MAX_REGEX)
        elif self.choice is not None:
            self._check_choice()
        elif self.grammar is not None:
            _check_text("grammar", self.grammar, MAX_TEXT)
        if self.tools is not None:
            self._check_tools()
        elif self.tool_choice != "auto":
            raise ConfigError(f"tool_choice={show_json(self.tool_choice)} means nothing without tools")
        if not isinstance(self.parallel_tool_calls, bool):
            raise ConfigError(f"parallel_tool_calls is {show_json(self.parallel_tool_calls)}, expected true or false")

    def _check_json(self) -> None:
        schema, text = _canonical("json", self.json, MAX_TEXT)
        if not isinstance(schema, dict | bool):
            raise ConfigError(f"json is {show_json(schema)}, expected a JSON schema", hint="A schema is an object.")
        check_schema(schema, "json")
        object.__setattr__(self, "json", text)

    def _check_choice(self) -> None:
        if not isinstance(self.choice, list | tuple) or not self.choice:
            raise ConfigError(f"choice is {show_json(self.choice)}, expected a list of strings")
        if len(self.choice) > MAX_CHOICES:
            raise ConfigError(f"choice has {len(self.choice)} entries, at most {MAX_CHOICES} are allowed")
        for text in self.choice:
            _check_text("choice", text, MAX_TEXT)
        _check_text("choice", "".join(self.choice), MAX_TEXT)
        object.__setattr__(self, "choice", tuple(self.choice))

    def _check_tools(self) -> None:
        tools = check_tools(_read_json("tools", self.tools, MAX_TOOLS_TEXT))
        if tools is None:
            raise ConfigError("tools is empty, expected at least one tool definition")
        names = [tool["function"]["name"] for tool in tools]
        for tool, name in zip(tools, names, strict=True):
            check_schema(tool["function"].get("parameters") or {}, name)
        if self.tool_choice not in ("auto", "required", *names):
            raise ConfigError(
                f"tool_choice={show_json(self.tool_choice)} is no tool",
                hint="Set it to auto, required or a tool's name.",
            )
        object.__setattr__(self, "tools", json.dumps(tools, ensure_ascii=False, separators=(",", ":")))

    @classmethod
    def from_response_format(cls, response_format: Mapping[str, Any]) -> Self | None:
        """Read OpenAI's `response_format`; return None where it asks for plain text.

        Raises:
            ConfigError: the format is none of text, json_object and json_schema, or not as OpenAI describes it.
        """
        if not isinstance(response_format, Mapping):
            raise ConfigError(f"response_format is {show_json(response_format)}, expected an object")
        kind = response_format.get("type")
        known = {"text": (), "json_object": (), "json_schema": ("json_schema",)}
        if not isinstance(kind, str) or kind not in known:
            raise ConfigError(
                f"the type of response_format is {show_json(kind)}", hint=f"It is one of {', '.join(known)}."
            )
        _only(response_format, ("type", *known[kind]), f"response_format of type {kind}")
        if kind == "text":
            return None
        if kind == "json_object":
            return cls(json_object=True)
        inner = response_format.get("json_schema")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
            raise ConfigError('response_format lacks {"json_schema": {"schema": {...}}}')
        _only(inner, ("name", "description", "schema", "strict"), "response_format.json_schema")
        for field, kinds in (("name", str), ("description", str), ("strict", bool)):
            if inner.get(field) is not None and not isinstance(inner[field], kinds):
                raise ConfigError(f"response_format.json_schema.{field} is {show_json(inner[field])}: wrong type")
        return cls(json=dict(inner["schema"]))


def check_schema(schema: Any, what: str) -> None:
    """Raise `ConfigError` for what the compiler would take without holding answers to it."""
    for part in subschemas(schema):
        if "x-guidance" in part:
            raise ConfigError(f"{what} holds x-guidance, which is no keyword of JSON Schema", hint="Leave it out.")
        minimum, required = part.get("minProperties", 0), part.get("required", [])
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        # Further properties may be repeated in an answer, and a repeated one counts once.
        if isinstance(minimum, int | float) and minimum > named + 1:
            raise ConfigError(
                f"{what} has minProperties={show_json(minimum)} beside {named} required properties: unsupported",
                hint="Name the properties under required.",
            )


def _canonical(what: str, value: Any, limit: int) -> tuple[Any, str]:
    """Return `value` read and written again, as plain JSON in its own order of keys; text is JSON already."""
    value = _read_json(what, value, limit)
    try:
        _check_depth(what, value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{what} is not JSON ({error})") from None
    _check_text(what, text, limit)
    return value, text


def _read_json(what: str, value: Any, limit: int) -> Any:
    """Return what JSON text says; a value that is no text stays as it is."""
    if not isinstance(value, str):
        return value
    _check_text(what, value, limit)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON ({error})") from None


def _check_depth(what: str, value: Any) -> None:
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ConfigError(f"{what} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(part, Mapping):
            if not all(isinstance(key, str) for key in part):
                raise ConfigError(f"{what} has a key that is not a string")
            waiting += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part]


def _check_text(what: str, text: Any, limit: int) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{what} is {show_json(text)}, expected a string")
    if not is_text(text):
        raise ConfigError(f"{what} holds {HALF_A_CHARACTER}")
    if (size := len(text.encode())) > limit:
        raise ConfigError(f"{what} takes {size} bytes, at most {limit} are allowed")


def _only(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{what} has no field {show_json(name)}", hint=f"Its fields: {', '.join(known)}.")
