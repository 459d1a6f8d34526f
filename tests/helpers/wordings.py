"""Reading a question back: which group of wordings it is in, which wording it is, and what that is filled in with."""

from __future__ import annotations

import pkgutil
import re
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import pocketvlm.synthetic
from pocketvlm.synthetic.drawing.figures import COLOURS
from pocketvlm.synthetic.words.values import ORDINALS, Wordings

# What some names are filled in with; the others may be anything.
CLOSED = {
    "colour": "|".join((*COLOURS, "grey")),
    "end": "first|last",
    "extreme": "highest|lowest|largest|smallest|larger|smaller",
    "mark": "bar|point|slice",
    "more": "more|fewer|the most|the fewest",
    "number": r"\d+",
    "ordinal": "|".join((*ORDINALS, "last")),
    "place": "|".join((*ORDINALS, *(f"{a} {b}" for a in ("top", "bottom") for b in ("left", "right")))),
    "relation": "left of|right of|above|below|after|before",
    "size": "larger|smaller",
    "time": "start|end",
    "what": "button|field|box",
    "which": "first|last",
}


class Reading(NamedTuple):
    """Attributes:
    group: the name of the wordings in their module.
    wording: with {names}.
    words: what the names are filled in with.
    is_heldout: whether the wording is of the held-out split only.
    """

    group: str
    wording: str
    words: dict[str, str]
    is_heldout: bool


def modules() -> list[ModuleType]:
    """Every module of `pocketvlm.synthetic`."""
    found = pkgutil.walk_packages(pocketvlm.synthetic.__path__, "pocketvlm.synthetic.")
    return [import_module(module.name) for module in found]


def groups(module: ModuleType) -> dict[str, Wordings]:
    """The wordings that `module` asks in, by their names."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Wordings)}


def read(module: ModuleType, text: str) -> Reading:
    """How `module` came to ask `text`: by the wording that says most of it itself."""
    matches = [
        (rank, Reading(group, wording, match.groupdict(), heldout))
        for rank, group, wording, heldout, pattern in _patterns(module)
        if (match := pattern.fullmatch(text))
    ]
    assert matches, f"no wording of {module.__name__} makes {text!r}"
    return max(matches, key=lambda match: match[0])[1]


@cache
def _patterns(module: ModuleType) -> list[tuple[tuple[int, int], str, str, bool, re.Pattern[str]]]:
    out = []
    for group, wordings in groups(module).items():
        for wording in (*wordings.train, *wordings.heldout):
            parts = re.split(r"{(\w+)}", wording)
            names = parts[1::2]
            parts[::2] = map(re.escape, parts[::2])
            parts[1::2] = [f"(?P<{name}>{CLOSED.get(name, '.+?')})" for name in names]
            # The longer its own text the better; at a tie, what may stand in fewer places.
            rank = sum(map(len, re.split(r"{\w+}", wording))), sum(name in CLOSED for name in names)
            out.append((rank, group, wording, wording in wordings.heldout, re.compile("".join(parts))))
    return out
