"""The keys of a settings file, each taken once with its kind; what is left at the end is named or refused.

Numbers may be text: YAML takes `1e-4` for text, and both programs read their settings as a command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from pocketvlm.errors import ConfigError
from pocketvlm.ranges import show

_NOTHING: tuple[Any, ...] = (None, "", [], {})
_OFF = ("none", "false", "no", "0", "0.0", "-1")
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class Keys:
    """Args:
    values: content of the file.
    name: of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.left = {key: value for key, value in values.items() if value not in _NOTHING and value != "None"}
        self.empty = {key for key, value in values.items() if value == ""}
        self.name = name

    def refuse(self, key: str, value: Any, expected: str, hint: str = "") -> NoReturn:
        """Raise the error of a key whose value cannot be honoured."""
        raise ConfigError(f"{self.name}: {key} is {show(value)}, {expected}", hint=hint)

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.left.pop(key, default)
        if value is None:
            return None
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError):
            self.refuse(key, value, "expected a number")

    def whole(self, key: str, default: int | None = None) -> int | None:
        value = self.number(key, default)
        if value is not None and value != value // 1:
            self.refuse(key, value, "expected a whole number")
        return None if value is None else int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.left.pop(key, default)
        if (found := _FLAGS.get(str(value).lower())) is None:
            self.refuse(key, value, "expected true or false")
        return found

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.left.pop(key, default)
        if isinstance(value, list | dict):
            self.refuse(key, value, "expected a text")
        return None if value is None else str(value)

    def words(self, key: str, separator: str | None = None) -> tuple[str, ...]:
        """A list, or text with words in it; () where there are none.

        Args:
            separator: between words of a text; any white space when None.
        """
        value = self.left.pop(key, ())
        if isinstance(value, str):
            value = [one.strip() for one in value.split(separator)]
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            self.refuse(key, value, "expected names")
        return tuple(one for one in value if one)

    def one_of(self, key: str, allowed: Iterable[str], default: str, hint: str = "") -> str:
        """One of some words, in small letters."""
        value = self.left.pop(key, default)
        allowed = tuple(allowed)
        if str(value).lower() not in allowed:
            self.refuse(key, value, f"and here it can be {' or '.join(allowed)} only", hint)
        return str(value).lower()

    def close(self, harmless: str, off: str, fixed: Mapping[str, Any]) -> tuple[str, ...]:
        """Go through what is left.

        Args:
            harmless: patterns of names of keys that change nothing of what is learnt, with spaces between.
            off: names of what is not had here; each may be there when it is switched off.
            fixed: key → the only value that it may have, which is as it is here.

        Returns:
            a line that names the keys that were left out; none where there are none.

        Raises:
            ConfigError: a key would change what is learnt, or is unknown.
        """
        patterns, switched = harmless.split(), off.split()
        unused = []
        for key, value in self.left.items():
            if key in fixed:
                if not _same(value, fixed[key]):
                    self.refuse(key, value, f"and here it can be {fixed[key]} only", "Take the key out.")
            elif any(fnmatchcase(key, pattern) for pattern in switched):
                if str(value).lower() not in _OFF:
                    self.refuse(key, value, "which cannot be honoured here", "Take the key out.")
            elif any(fnmatchcase(key, pattern) for pattern in patterns):
                unused.append(key)
            else:
                hint = "Take it out if it changes nothing of what is learnt."
                raise ConfigError(f"{self.name}: the key {key!r:.60} is unknown here", hint=hint)
        if not unused:
            return ()
        return (f"{self.name}: left out, since nothing of what is learnt depends on them here: {', '.join(unused)}",)


def _same(value: Any, other: Any) -> bool:
    try:
        return float(value) == float(other)
    except (TypeError, ValueError):
        return str(value).lower() == str(other).lower()
