"""A JSON answer and its log probabilities → a number for each field.

It is the geometric mean of the probabilities that the model gave the tokens of the value, from 0 to 1. It says how sure
the model was of its wording, not how often it is right: it is not calibrated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from pocketvlm.api.answers import Answer
from pocketvlm.documents.fields import join

_DECODER = json.JSONDecoder()
_BROKEN = "\ufffd"
_BLANK = " \t\r\n"


def confidences(answer: Answer) -> dict[str, float]:
    """Field, nested ones as `items.0.name` → its number; {} where tokens and text do not match."""
    spans = _spans(answer.text, [(piece.token, piece.logprob) for piece in answer.logprobs or ()])
    found = {}
    for name, first, last in leaves(answer.text):
        logs = [log for start, end, log in spans if start < last and end > first]
        if logs:
            found[name] = round(math.exp(sum(logs) / len(logs)), 4)
    return found


def _spans(text: str, pieces: Sequence[tuple[str, float]]) -> list[tuple[int, int, float]]:
    """(first character, one behind the last, log probability) of each token. Tokens that hold parts of characters,
    which alone are no text, stand together for what lies between their neighbours; [] where the rest does not match."""
    spans: list[tuple[int, int, float]] = []
    at = place = 0
    while place < len(pieces) and at < len(text):
        token, log = pieces[place]
        if _BROKEN not in token:
            if not (text.startswith(token, at) or token.startswith(text[at:])):
                return []
            spans.append((at, at + len(token), log))
            at, place = at + len(token), place + 1
            continue
        first = place
        while place < len(pieces) and _BROKEN in pieces[place][0]:
            place += 1
        following = ""
        for token, _ in pieces[place : place + 4]:
            if _BROKEN in token:
                break
            following += token
        # A broken character is one at least; what follows may be cut off with the answer.
        end = text.find(following, at + 1) if following and following in text[at + 1 :] else len(text)
        spans += [(at, end, log) for _, log in pieces[first:place]]
        at = end
    return spans


def leaves(text: str, at: int = 0, name: str = "") -> Iterator[tuple[str, int, int]]:
    """(field, first character, one behind the last) of every value in a JSON text that is no object and no array."""
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
        yield from leaves(text, at, join(name, key))
        at = _skip(text, _DECODER.raw_decode(text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at
        index += 1


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at
