"""An answer and what was expected → a score from 0 to 1, by the definitions the field publishes its figures with."""

from __future__ import annotations

import json
import math
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.tasks import Example

Box = tuple[float, float, float, float]

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05
IOU_THRESHOLD = 0.5

_BETWEEN = r"[\s,;]+"
_NUMBER = r"\d{1,4}(?:\.\d+)?"
_BOX = rf"({_NUMBER}){_BETWEEN}({_NUMBER}){_BETWEEN}({_NUMBER}){_BETWEEN}({_NUMBER})"
_TAGGED_BOX = re.compile(rf"<box>\s*{_BOX}\s*</box>")
_BARE_BOX = re.compile(rf"[\[(]?\s*{_BOX}\s*[\])]?\.?")

_VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_VQA_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VQA_WORDS = {"none": "0"} | {word: str(value) for value, word in enumerate(_VQA_NUMBERS)}
_VQA_ARTICLES = frozenset(("a", "an", "the"))
# The common ones by their endings; those in 's are set apart before, and need no entry.
_CONTRACTIONS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could i might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'m": "i",
}
_VQA_APOSTROPHES = {
    (stem + ending).replace("'", ""): stem + ending for ending, stems in _CONTRACTIONS.items() for stem in stems.split()
}


def levenshtein(a: str, b: str) -> int:
    """Edit distance: the fewest insertions, deletions and substitutions of characters (Levenshtein, 1966)."""
    if len(a) < len(b):
        a, b = b, a
    if not b:
        return len(a)
    codes = np.array([ord(c) for c in b])
    steps = np.arange(len(b) + 1)
    row = steps
    for i, c in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(c)))
        # Insertions run along the row: the minimum of what lies to the left, plus the way from there.
        row = np.minimum.accumulate(np.concatenate(([i], best)) - steps) + steps
    return int(row[-1])


def is_same(answer: str, expected: str) -> bool:
    """To the letter, but for spaces around."""
    return answer.strip() == expected.strip()


def normalise(text: str) -> str:
    """What `is_match` compares: Unicode NFKC, lower case, one space between words, and neither quotes around nor a full
    stop at the end.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip("\"'").removesuffix(".").strip().strip("\"'")


def is_match(answer: str, expected: str) -> bool:
    """Exact match after `normalise`."""
    return normalise(answer) == normalise(expected)


def anls(answer: str, expected: str) -> float:
    """Normalised Levenshtein similarity, 0 from a distance of half the longer text on (Biten et al., 2019, "Scene Text
    Visual Question Answering"). Case and repeated spaces do not count, as in the evaluation of DocVQA.

    The mean of this, of the best answer each, is the ANLS. At a distance of exactly half, the paper's formula, followed
    here, gives 0.
    """
    a, b = (" ".join(text.casefold().split()) for text in (answer, expected))
    distance = levenshtein(a, b) / max(len(a), len(b), 1)
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def is_relaxed_match(answer: str, expected: str) -> bool:
    """Relaxed accuracy: numbers within 5 % of the expected one, all else the same but for case (Methani et al., 2020,
    "PlotQA"; Masry et al., 2022, "ChartQA"). "5%" is 0.05; an expected 0 has no 5 %, and is compared as text.
    """
    given, wanted = _number(answer), _number(expected)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= RELATIVE_TOLERANCE
    return answer.strip().casefold() == expected.strip().casefold()


def _number(text: str) -> float | None:
    """The text as a number; None where it is something else."""
    text = text.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def vqa_normalise(text: str) -> str:
    """The normalisation of TextVQA's evaluation: lower case, punctuation and articles out, numbers up to ten as digits,
    apostrophes back into the common contractions.
    """
    text = text.casefold().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    bare = text
    for mark in _VQA_PUNCTUATION:
        # A mark that touches a space anywhere is dropped; one between letters only parts two words.
        bare = bare.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    words = (_VQA_WORDS.get(word, word) for word in re.sub(r"\.(?!\d)", "", bare).split())
    return " ".join(_VQA_APOSTROPHES.get(word, word) for word in words if word not in _VQA_ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """VQA accuracy: an answer that three people gave is right (Antol et al., 2015, "VQA"; Singh et al., 2019,
    "TextVQA").

    min(matches / 3, 1), averaged over leaving out each of the (usually ten) people's answers in turn. A single accepted
    answer is simply matched.
    """
    given = vqa_normalise(answer)
    matches = [given == vqa_normalise(expected) for expected in answers]
    if len(matches) < 2:
        return float(any(matches))
    total = sum(matches)
    return sum(min((total - left_out) / 3, 1.0) for left_out in matches) / len(matches)


def parse_box(text: str) -> Box | None:
    """The one box in `text`: x1 y1 x2 y2 from 0 to 1000, in <box> tags anywhere, or as all there is, since decoding may
    drop the tags. None when there is no such box, or several, or it has no area.
    """
    tagged = _TAGGED_BOX.findall(text)
    if not tagged and "<box>" not in text:
        bare = _BARE_BOX.fullmatch(text.strip())
        tagged = [bare.groups()] if bare else []
    if len(tagged) != 1:
        return None
    x1, y1, x2, y2 = map(float, tagged[0])
    return (x1, y1, x2, y2) if x1 < x2 <= 1000 and y1 < y2 <= 1000 else None


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, wide) * max(0.0, high)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both
    return both / area if area > 0 else 0.0


def is_box_match(answer: str, expected: str) -> bool:
    """Acc@0.5 of grounding: the boxes' intersection over union is at least 0.5 (Yu et al., 2016, "Modeling Context in
    Referring Expressions"; IoU of Everingham et al., 2010, "PASCAL VOC"). What is not a box is wrong.
    """
    given, wanted = parse_box(answer), parse_box(expected)
    return given is not None and wanted is not None and iou(given, wanted) >= IOU_THRESHOLD


def character_error_rate(answer: str, expected: str) -> float:
    """Levenshtein distance over the expected text's length, as in speech and handwriting recognition; may be above 1.
    Line breaks and runs of spaces count as one space.
    """
    a, b = (" ".join(text.split()) for text in (answer, expected))
    return levenshtein(a, b) / max(len(b), 1)


def parse_choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter an answer to a multiple-choice question settles on: "B", "(b)", "B. A cat", "The answer is B", or the
    text of an option. None where it names none or several.

    Args:
        choices: the options; without them any letter is one.
    """
    letters = string.ascii_uppercase[: len(choices) or 26]
    text = text.strip().strip("*").strip()
    if match := re.fullmatch(rf"[(\[]?([{letters}])[)\].:,]*", text, re.IGNORECASE):
        return match[1].upper()
    # Who reasons step by step names other options on the way: what is called the answer last counts.
    if stated := re.findall(rf"\b(?i:answer)(?i:\s+is)?[\s:*]*[(\[]?([{letters}])\b", text):
        return str(stated[-1])
    named = set(re.findall(rf"\b(?i:option)(?i:\s+is)?[\s:*]*[(\[]?([{letters}])\b", text))
    if not named and (match := re.match(rf"[(\[]?([{letters}])(?:[)\].:,]|\s*\n)", text)):
        named = {match[1]}
    if not named:
        # A and I also are words: before other words they are taken for that.
        named = set(re.findall(rf"(?<![\w'])(?![AI]\s+(?!and\b|or\b)[a-z])([{letters}])(?![\w'])", text))
    if len(named) == 1:
        return named.pop()
    same = [letter for letter, choice in zip(letters, choices, strict=False) if is_match(text, choice)]
    return same[0] if len(same) == 1 else None


def contains(answer: str, expected: str) -> bool:
    """OCRBench: the answer holds the expected text, whatever the case, line breaks read as spaces (Liu et al., 2023,
    "On the Hidden Mystery of OCR in Large Multimodal Models").
    """
    a, b = (text.casefold().strip().replace("\n", " ") for text in (answer, expected))
    return b in a


def contains_formula(answer: str, expected: str) -> bool:
    """As `contains`, for OCRBench's handwritten formulas: spaces do not count, case does."""
    a, b = ("".join(text.split()) for text in (answer, expected))
    return b in a


def field_accuracy(answer: str, expected: str) -> float:
    """Of the values in either JSON text, the share that both have at the same place, by the keys and indices that lead
    there: what is missing, wrong or too much counts against the answer. 0 for what is not JSON.
    """
    try:
        given, wanted = (dict(_values(json.loads(text))) for text in (answer, expected))
    except (ValueError, RecursionError):
        return 0.0
    return sum(place in given and given[place] == value for place, value in wanted.items()) / len(given | wanted)


def _values(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], tuple[type, Any]]]:
    """(place, type and value) of each value that holds no others; the type tells true from 1, and [] from {}."""
    parts = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not parts:
        yield place, (float if type(value) is int else type(value), value)
    for key, part in parts:
        yield from _values(part, (*place, key))


class Metric(NamedTuple):
    """A way to judge an answer.

    Attributes:
        score: (answer, example) to a score from 0 to 1.
        fractional: scores between 0 and 1 occur, so that their mean is no proportion.
        max_tokens: what an answer of this kind may take.
    """

    score: Callable[[str, Example], float]
    fractional: bool
    max_tokens: int


def _best(compare: Callable[[str, str], float]) -> Callable[[str, Example], float]:
    """The score against the most favourable of the accepted answers."""
    return lambda answer, example: max(float(compare(answer, expected)) for expected in example.answers)


def _choice(answer: str, example: Example) -> float:
    letter = parse_choice(answer, example.choices)
    return float(letter is not None and letter in {expected.strip().upper() for expected in example.answers})


METRICS: dict[str, Metric] = {
    "strict": Metric(_best(is_same), False, 256),
    "exact": Metric(_best(is_match), False, 256),
    "anls": Metric(_best(anls), True, 128),
    "relaxed": Metric(_best(is_relaxed_match), False, 64),
    "vqa": Metric(lambda answer, example: vqa_accuracy(answer, example.answers), True, 64),
    "iou": Metric(_best(is_box_match), False, 64),
    "cer": Metric(_best(lambda a, b: max(0.0, 1.0 - character_error_rate(a, b))), True, 1024),
    "choice": Metric(_choice, False, 1024),
    "contains": Metric(_best(contains), False, 256),
    "contains_formula": Metric(_best(contains_formula), False, 256),
    "fields": Metric(_best(field_accuracy), True, 1024),
}


def metric_of(example: Example) -> Metric:
    """The metric that an example asks for; `ConfigError` where the example cannot be scored."""
    if example.metric not in METRICS:
        raise ConfigError(f"metric {example.metric!r} is unknown", hint=f"Use one of {', '.join(METRICS)}.")
    if not example.answers:
        raise ConfigError(f"example {example.id!r} of task {example.task!r} has no accepted answer")
    return METRICS[example.metric]


def score(answer: str, example: Example) -> float:
    """What `answer` to `example` is worth, from 0 to 1."""
    return metric_of(example).score(answer, example)
