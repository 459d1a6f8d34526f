"""A JSON answer and its log probabilities → a number for each field.

It is the geometric mean of the probabilities that the model gave the tokens of the value, from 0 to 1. It says how sure
the model was of its wording, not how often it is right: it is not calibrated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from pocketvlm.api.answers import Answer

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"


def confidences(answer: Answer) -> dict[str, float]:
    """Field, nested ones as `items.0.name` → its number; {} where tokens and text do not match."""
    pieces = answer.logprobs or ()
    if not "".join(piece.token for piece in pieces).startswith(answer.text):
        return {}
    spans, at = [], 0
    for piece in pieces:
        spans.append((at, at + len(piece.token), piece.logprob))
        at += len(piece.token)
    found = {}
    for name, first, last in _leaves(answer.text, 0, ""):
        logs = [log for start, end, log in spans if start < last and end > first]
        if logs:
            found[name] = round(math.exp(sum(logs) / len(logs)), 4)
    return found


def _leaves(text: str, at: int, name: str) -> Iterator[tuple[str, int, int]]:
    """(field, first character, one behind the last) of every value that is no object and no array."""
    at = _skip(text, at)
    if text[at] not in "{[":
        yield name, at, _DECODER.raw_decode(text, at)[1]
        return
    is_object, index = text[at] == "{", 0
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        key = str(index)
        if is_object:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, at) + 1  # the colon
        at = _skip(text, at)
        yield from _leaves(text, at, f"{name}.{key}" if name else key)
        at = _skip(text, _DECODER.raw_decode(text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at
        index += 1


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at
