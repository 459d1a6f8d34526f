"""Questions in more words than `pocketvlm.synthetic` asks them in: what is asked is to be learnt, not how.

Training only: the suite asks half of its questions in wordings that are held out, and none of those is made here
(`is_held_out`). The words stand in rewording.toml.
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np

import pocketvlm.synthetic
from pocketvlm.synthetic import Question
from pocketvlm.synthetic.words.values import Wordings, one_of

SHARE = 0.6  # of the questions that are reworded where that is possible
SURFACE = 0.25  # of all questions: written in haste, or with a please
KEPT = frozenset({"json"})  # kinds whose words are left alone
_OPENINGS = ("Please: {}", "Tell me: {}", "Look at this. {}", "A question: {}", "{} Thanks.", "Hello. {}")


def reword(rng: np.random.Generator, question: Question) -> Question:
    """The same question, often in other words."""
    if question.kind in KEPT:
        return question
    text = question.text
    if rng.random() < SHARE and (ways := _ways(text)):
        text = one_of(rng, ways)
    if rng.random() < SURFACE:
        text = _in_haste(rng, text)
    if text == question.text or is_held_out(text):
        return question
    return question._replace(text=text)


def _ways(text: str) -> list[str]:
    known, rules = _words()
    if text in known:
        return known[text]
    for pattern, forms in rules:
        if match := pattern.fullmatch(text):
            return [form.format(*match.groups()) for form in forms]
    return []


def _in_haste(rng: np.random.Generator, text: str) -> str:
    share = rng.random()
    if share < 0.4:
        return text.rstrip("?.")
    if share < 0.7:
        return text[:1].lower() + text[1:]
    return one_of(rng, _OPENINGS).format(text)


def is_held_out(text: str) -> bool:
    """Whether a question is in one of the held-out wordings of any kind of picture, whatever its case and last sign."""
    return _held_out().fullmatch(_bare(text)) is not None


def _bare(text: str) -> str:
    return text.strip().rstrip("?.:! ").casefold()


@cache
def _words() -> tuple[dict[str, list[str]], list[tuple[re.Pattern[str], list[str]]]]:
    found = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    known = {asked: entry["forms"] for entry in found["known"] for asked in entry["asked"]}
    return known, [(re.compile(rule["pattern"]), rule["forms"]) for rule in found["rule"]]


@cache
def _held_out() -> re.Pattern[str]:
    found = set()
    for module in pkgutil.walk_packages(pocketvlm.synthetic.__path__, "pocketvlm.synthetic."):
        for value in vars(import_module(module.name)).values():
            for wording in value.heldout if isinstance(value, Wordings) else ():
                parts = re.split(r"\{\w+\}", _bare(wording))
                if any(part.strip() for part in parts):  # "{label}:" without its sign is every text
                    found.add(".+?".join(map(re.escape, parts)))
    return re.compile("|".join(sorted(found)))
