"""Where an answer stands, and what its question names: for each of their tokens the visual tokens that show it.

Reading and looking up both come down to finding something in the picture: what the question names, then the next
character. The loss of the answers alone leaves it to the decoder to discover that; `guided.py` tells it.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from pocketvlm.processing.patches.slicing import SlicePlan
from pocketvlm.synthetic.drawing.figures import COLOURS
from pocketvlm.synthetic.sample import CharacterBox, ObjectBox, QuestionKind, box_answer
from recipes.nano.cells import HALO, KINDS, grids

SHORTEST_NAME = 3  # characters of a printed word that a question names: shorter ones stand in others too often
_KINDS = frozenset(KINDS[1:])
_WORD = re.compile(r"[A-Za-z0-9][^\s?:,\"']*[A-Za-z0-9]")


def places(
    tokens: Sequence[str],
    characters: Sequence[CharacterBox],
    objects: Sequence[ObjectBox],
    plan: SlicePlan,
    patch: int,
) -> list[list[int]] | None:
    """The visual tokens that show each token of an answer, as numbers in the picture; none for a token that is no print
    (a space).

    Args:
        tokens: text of the tokens of an answer, without its end.

    Returns:
        None where the answer is not printed, or stands in several places, and is neither the box of an object nor the
        kind or colour of one only. Of JSON each string is looked for by itself.
    """
    answer = "".join(tokens)
    for box in objects:
        if answer == box_answer(box.left, box.top, box.right, box.bottom, plan.image.height, plan.image.width):
            return [_middle(box, plan, patch)] * len(tokens)
    printed = "".join(box.character for box in characters)
    found: list[list[int]] = [[] for _ in tokens]
    is_json = answer[:1] in ("{", "[")
    for start, end in _strings(answer) if is_json else [(0, len(answer))]:
        place = _only_place("".join(answer[start:end].split()), printed, in_any_case=not is_json)
        if place is not None:
            for i, character in _characters(tokens, characters, start, end, place):
                x, y = (character.left + character.right) / 2, (character.top + character.bottom) / 2
                found[i] = _cells(x, y, plan, patch)
    if any(found):
        return found
    meant = [box for box in objects if answer in (box.kind, box.colour)]
    return [_middle(meant[0], plan, patch)] * len(tokens) if len(meant) == 1 else None


def named(
    tokens: Sequence[str],
    characters: Sequence[CharacterBox],
    objects: Sequence[ObjectBox],
    plan: SlicePlan,
    patch: int,
    kind: QuestionKind = "text",
) -> list[list[int] | None]:
    """The visual tokens that show what each token of a question names: of a printed word the cells of its characters;
    of a colour the middle of each object that has it, of a kind the same, but behind a colour only of those of both.

    Args:
        tokens: text of the tokens of a question.
        kind: of the question. One of the kind "absent" names something printed that is not there; the word "box" in
            one of that kind is no object.

    Returns:
        None where a kind or a colour is named that no object has, or what is absent; [] for tokens that name nothing.
    """
    ends = list(itertools.accumulate(len(token) for token in tokens))
    printed = "".join(box.character for box in characters).casefold()
    found: list[list[int] | None] = [[] for _ in tokens]
    colour = ""
    for match in _WORD.finditer("".join(tokens)):
        word = match.group().casefold()
        names = {word, word.removesuffix("s"), word.removesuffix("es")}  # "crosses"
        kinds = names & _KINDS - ({"box"} if kind == "box" else set())
        before, colour = colour, word if word in COLOURS else ""
        last = bisect_left(ends, match.end())  # a word is known once its last token is
        if objects and (kinds or colour):
            meant = [
                box
                for box in objects
                if (box.colour == colour if colour else box.kind in kinds and before in ("", box.colour))
            ]
            found[last] = [cell for box in meant for cell in _middle(box, plan, patch)] or None
        elif len(word) >= SHORTEST_NAME and (place := _only_place(word, printed, in_any_case=False)) is not None:
            for i, character in _characters(tokens, characters, match.start(), match.end(), place):
                x, y = (character.left + character.right) / 2, (character.top + character.bottom) / 2
                found[i] = _cells(x, y, plan, patch)
        elif kind == "absent" and bisect_right(ends, match.start()) < last and word not in printed:
            found[last] = (
                None  # names are spelt letter by letter, the other words of questions have tokens of their own
            )
    return found


def _middle(box: ObjectBox, plan: SlicePlan, patch: int) -> list[int]:
    """The visual tokens that hold the middle of an object."""
    return _cells((box.left + box.right) / 2, (box.top + box.bottom) / 2, plan, patch)


def _strings(answer: str) -> list[tuple[int, int]]:
    """Where the strings of JSON begin and end."""
    return [match.span(1) for match in re.finditer(r'"([^"\\]+)"', answer)]


def _characters(
    tokens: Sequence[str], characters: Sequence[CharacterBox], start: int, end: int, place: int
) -> Iterator[tuple[int, CharacterBox]]:
    """The tokens between `start` and `end` of an answer, by their numbers, and the first character that each prints;
    the first of all of them is `characters[place]`."""
    began = 0
    for number, token in enumerate(tokens):
        ends = began + len(token)
        text = "".join(token[max(0, start - began) : max(0, end - began)].split())
        if text and ends > start:
            yield number, characters[place]
            place += len(text)
        began = ends


def _only_place(text: str, printed: str, *, in_any_case: bool) -> int | None:
    """Where `text` begins in what is printed; None where it does not or not only there."""
    for text_, printed_ in ((text, printed), (text.casefold(), printed.casefold()))[: 1 + in_any_case]:
        first = printed_.find(text_) if text_ else -1
        if first >= 0:
            return first if printed_.find(text_, first + 1) < 0 else None
    return None


def _cells(x: float, y: float, plan: SlicePlan, patch: int) -> list[int]:
    """The visual tokens of all views whose cell, or its halo, holds a point of the picture."""
    found, before = [], 0
    for view, grid in zip(plan.views, grids(plan, patch), strict=True):
        halo = HALO / (2 if view.downsample_mode == "16x" else 1)  # that of a part of the cell
        down, across = y * grid.down - grid.first_row, x * grid.across - grid.first_column
        for row in sorted({int((down + way) // 1) for way in (-halo, 0, halo)}):
            for column in sorted({int((across + way) // 1) for way in (-halo, 0, halo)}):
                if 0 <= row < grid.rows and 0 <= column < grid.columns:
                    found.append(before + row * grid.columns + column)
        before += grid.rows * grid.columns
    return found
