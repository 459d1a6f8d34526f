"""Text of one answer as it grows: what is shown is never taken back, and nothing of a stop string is ever shown."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.api.choice import Choice

PIECES = st.lists(st.text("ab<", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3)


class Pieces:
    """A detokenizer whose token i is piece i."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.add = pieces.__getitem__

    def flush(self) -> str:
        return ""


def choice(pieces: Sequence[str], stops: Sequence[str]) -> Choice:
    return Choice(Pieces(pieces), stops)  # type: ignore[arg-type]


def read(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], bool]:
    """What is shown after each token, and whether a stop string has ended it."""
    growing, shown = choice(pieces, stops), list[str]()
    for token in range(len(pieces)):
        _, new, _, ended = growing.add([token], token == len(pieces) - 1)
        shown.append(new)
        if ended:
            return shown, True
    return shown, False


def until_a_stop(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    """The whole text up to the stop string that is complete first, read character by character."""
    text = ""
    for character in "".join(pieces):
        text += character
        if found := [text.find(stop) for stop in stops if stop in text]:
            return text[: min(found)], True
    return text, False


@settings(max_examples=500)
@given(PIECES, STOPS)
def test_what_is_shown_adds_up_to_the_text_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    shown, ended = read(pieces, stops)
    assert ("".join(shown), ended) == until_a_stop(pieces, stops)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_first_characters_of_a_stop_string_wait_until_it_cannot_come(size: int) -> None:
    text = "ab <sto> cd <stop> ef"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    growing, seen = choice(pieces, ["<stop>"]), ""
    for token, _ in enumerate(pieces):
        _, new, _, ended = growing.add([token], False)
        seen += new
        read_so_far = "".join(pieces[: token + 1])
        held = next(n for n in range(5, -1, -1) if read_so_far.endswith("<stop>"[:n]))
        if ended:
            break
        assert seen == read_so_far[: len(read_so_far) - held]
    assert seen == growing.text == "ab <sto> cd "


@pytest.mark.parametrize("stops", [("wor", "o"), ("o", "wor"), ("world", "lo w"), ("lo w", "world")])
def test_of_two_stop_strings_in_one_piece_the_earlier_ends_it(stops: tuple[str, ...]) -> None:
    growing = choice(["hello world"], stops)
    expected = "hello world"[: min("hello world".index(stop) for stop in stops)]
    assert growing.add([0], False) == ("", expected, (), True)
    assert growing.text == expected


def test_the_beginning_of_a_stop_string_at_the_end_of_an_answer_is_text() -> None:
    growing = choice(["one <st"], ["<stop>"])
    assert growing.add([0], True) == ("", "one <st", (), False)
