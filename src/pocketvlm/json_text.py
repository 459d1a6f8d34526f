"""JSON as its standard has it and UTF-8 can carry it: no NaN, no infinity, no halves of characters."""

from __future__ import annotations

import json
from typing import Any, NoReturn

HALF_A_CHARACTER = "half of a surrogate pair, which is no character"  # what a string that is not `is_text` holds


def read_json(text: str | bytes) -> Any:
    """Return what JSON text says; `ValueError` or `RecursionError` where it is none, or spells NaN or an infinity."""
    return json.loads(text, parse_constant=_refuse)


def is_text(value: str) -> bool:
    """Return whether UTF-8 can carry it: JSON can spell halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
