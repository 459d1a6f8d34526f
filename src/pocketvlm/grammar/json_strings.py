r"""Which escapes strings of a JSON answer may hold: schema → whether `\uXXXX` is among them, or one line of refusal.

JSON writes U+0000 to U+001F and U+007F as `\uXXXX`, where they have no short escape. llguidance does so only where that
escape is allowed at all; elsewhere it drops such a character out of a constant or out of a pattern's literal text, and
answers then leave their schema. Classes of characters lose it without harm. But with the escape a further property can
spell the name of a property that has a schema of its own. So it is allowed where a schema names such a character, and
refused where objects of that schema are open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.json_schema import subschemas

# Without a short escape, and so written \uXXXX.
_ESCAPED = frozenset(map(chr, (*range(0x20), 0x7F))) - frozenset("\b\t\n\f\r")
_HEX = "[0-9A-Fa-f]"
# One character of a regular expression: by its number, by a letter, or as it is.
_CHARACTER = re.compile(rf"\\(?:[xuU]\{{({_HEX}+)\}}|x({_HEX}{{2}})|u({_HEX}{{4}})|U({_HEX}{{8}})|(.))|(.)", re.DOTALL)
_LETTERS = {"a": "\a", "v": "\v"}
# In a class these may leave a single character of many: classes in it, operations on sets, all but one excluded.
_NARROWING = frozenset(("[[", "&&", "--", "~~", "\U0010ffff"))


def needs_unicode_escapes(schema: Any) -> bool:
    r"""Return whether strings of `schema` must be able to hold `\uXXXX`.

    Raises:
        ConfigError: they must, and an object of the schema may have further properties beside named ones.
    """
    parts = list(subschemas(schema))
    found = next((character for part in parts for character in _characters(part) if character in _ESCAPED), None)
    if found is None:
        return False
    for part in parts:
        named = part.get("properties")
        if part.get("patternProperties") or (named and part.get("additionalProperties", True) is not False):
            raise ConfigError(
                f"a string of the schema holds U+{ord(found):04X}, unsupported beside further properties of an object",
                hint="Set additionalProperties to false wherever there are properties, without patternProperties.",
            )
    return True


def _characters(part: dict[str, Any]) -> Iterator[str]:
    """Yield the characters of a schema's constants, and those of its patterns that are literal text."""
    waiting = [part["const"]] if "const" in part else []
    if isinstance(part.get("enum"), list):
        waiting += part["enum"]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield from value
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
    patterns = [part.get("pattern")]
    if isinstance(part.get("patternProperties"), dict):
        patterns += part["patternProperties"]
    for pattern in patterns:
        if isinstance(pattern, str):
            yield from _literals(pattern)


def _literals(pattern: str) -> Iterator[str]:
    """Yield the characters of a pattern outside classes, and those of classes that may have but one."""
    depth, inside, before = 0, set[str](), ""
    for found in _CHARACTER.finditer(pattern):
        *numbers, letter, plain = found.groups()
        if plain == "[":
            depth += 1
            inside = set() if depth == 1 else inside | {"[["}
        elif plain == "]" and depth:
            depth -= 1
            if depth == 0 and (len(inside) == 1 or not inside.isdisjoint(_NARROWING)):
                yield from sorted(inside)
        else:
            digits = next(filter(None, numbers), "")
            character = (
                _number(digits)
                if digits
                else plain or _LETTERS.get(letter, letter if letter in _ESCAPED else f"\\{letter}")
            )
            if depth:
                inside |= {character, 2 * character if character == before else character} - {"-"}
            else:
                yield character
        before = plain


def _number(digits: str) -> str:
    """Return the character of hexadecimal digits, none beyond Unicode."""
    value = int(digits[-9:], 16) if not digits[:-9].strip("0") else 0x110000
    return chr(value) if value < 0x110000 else ""
