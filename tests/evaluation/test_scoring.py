"""Scores: values that follow from the published definitions, and what must hold for any text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation import scoring
from pocketvlm.evaluation.tasks import Example, MetricName

TEXT = st.text(max_size=30)
SIDE = st.integers(0, 1000)


def example(metric: str, *answers: str, choices: tuple[str, ...] = ()) -> Example:
    return Example("1", "t", (), "?", answers, metric, choices=choices)  # type: ignore[arg-type]


def boxes() -> st.SearchStrategy[scoring.Box]:
    sides = st.tuples(SIDE, SIDE, SIDE, SIDE).filter(lambda b: b[0] != b[2] and b[1] != b[3])
    return sides.map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])))


@given(TEXT, TEXT, TEXT)
def test_levenshtein_is_a_metric(a: str, b: str, c: str) -> None:
    distance = scoring.levenshtein
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(TEXT, st.integers(0, 30), st.characters())
def test_one_insertion_is_one_edit(text: str, place: int, character: str) -> None:
    assert scoring.levenshtein(text, text[:place] + character + text[place:]) == 1


def test_levenshtein_of_known_pairs() -> None:
    pairs = {("kitten", "sitting"): 3, ("Saturday", "Sunday"): 3, ("", "abc"): 3, ("flaw", "lawn"): 2}
    assert {pair: scoring.levenshtein(*pair) for pair in pairs} == pairs


@given(TEXT, TEXT, st.sampled_from(sorted(scoring.METRICS)))
def test_every_score_is_between_0_and_1_and_never_fails(answer: str, expected: str, metric: MetricName) -> None:
    assert 0 <= scoring.score(answer, example(metric, expected)) <= 1


@given(TEXT.filter(lambda text: text.strip()), TEXT)
def test_the_expected_answer_is_right_whatever_else_is_accepted(text: str, other: str) -> None:
    for metric in ("strict", "exact", "anls", "relaxed", "cer", "contains", "contains_formula"):
        assert scoring.score(text, example(metric, other, text)) == 1, metric


def test_strict_is_to_the_letter_and_exact_is_not() -> None:
    assert scoring.is_same(" Oak\n", "Oak")
    assert not scoring.is_same("oak", "Oak")
    assert scoring.is_match('  "The  OAK". ', "the oak")
    assert scoring.is_match("\uff11\uff12", "12")  # full-width digits
    assert not scoring.is_match("oaks", "oak")


@pytest.mark.parametrize(
    ("answer", "answers", "expected"),
    [
        ("coca cola", ("Coca Cola", "Coca Cola company"), 1.0),
        ("coca-cola", ("coca cola", "coca cola company"), 1 - 1 / 9),
        ("pepsi", ("coca cola", "coca cola company"), 0.0),
        ("abcd", ("abxy",), 0.0),  # a distance of exactly one half
        ("abcde", ("abcxy",), 1 - 2 / 5),
        ("abcdexy", ("abcde",), 1 - 2 / 7),  # over the longer of the two, which is the answer here
        ("abcde", ("abcdexy",), 1 - 2 / 7),
        ("two  words", ("TWO WORDS",), 1.0),
    ],
)
def test_anls_of_known_answers(answer: str, answers: tuple[str, ...], expected: float) -> None:
    assert scoring.score(answer, example("anls", *answers)) == pytest.approx(expected)


@given(TEXT, TEXT)
def test_anls_is_symmetric_and_never_between_0_and_a_half(a: str, b: str) -> None:
    value = scoring.anls(a, b)
    assert value == scoring.anls(b, a)
    assert value == 0 or value > 0.5


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("105", "100", True),
        ("94.9", "100", False),
        ("-95", "-100", True),
        ("5%", "0.05", True),
        ("5%", "5", False),
        ("0.01", "0", False),
        ("0", "0", True),
        ("Brazil", "brazil", True),
        ("Brasil", "Brazil", False),
        ("nan", "nan", True),
        ("nan", "1", False),
        ("inf", "1", False),
    ],
)
def test_relaxed_match_of_known_answers(answer: str, expected: str, right: bool) -> None:
    assert scoring.is_relaxed_match(answer, expected) is right


@given(st.floats(1e-3, 1e6), st.floats(-0.2, 0.2))
def test_relaxed_match_takes_five_percent(value: float, off: float) -> None:
    if abs(abs(off) - 0.05) > 1e-6:
        assert scoring.is_relaxed_match(repr(value * (1 + off)), repr(value)) is (abs(off) < 0.05)


@pytest.mark.parametrize(("people", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_one_of_ten_people_out(people: int, expected: float) -> None:
    answers = ["red"] * people + [f"other {i}" for i in range(10 - people)]
    assert scoring.vqa_accuracy("Red.", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs!", "2 dogs"),
        ("dont", "don't"),
        ("3.50", "3.50"),
        ("1,000", "1000"),
        ("a/b", "b"),  # the mark parts two words, and the article goes
        ("yes.\n", "yes"),
        ("an  apple , please", "apple please"),
        ("none", "0"),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert scoring.vqa_normalise(text) == expected


def test_a_single_accepted_answer_is_simply_matched() -> None:
    assert scoring.score("The ten", example("vqa", "10")) == 1


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("<box>1 2 30 40</box>", (1, 2, 30, 40)),
        ("<ref>the cat</ref><box>1 2 30 40</box>.", (1, 2, 30, 40)),
        (" 1 2 30 40 ", (1, 2, 30, 40)),
        ("[1, 2, 30, 40]", (1, 2, 30, 40)),
        ("0 0 1000 1000", (0, 0, 1000, 1000)),
        ("1 2 30", None),
        ("1 2 30 40 50", None),
        ("30 2 1 40", None),
        ("1 2 1 40", None),
        ("1 2 30 1001", None),
        ("1 -2 30 40", None),
        ("about 1 2 30 40", None),
        ("<box>1 2 30</box> 1 2 30 40", None),
        ("<box>1 2 30 40</box><box>1 2 30 40</box>", None),
        ("", None),
    ],
)
def test_boxes_are_parsed_or_wrong(text: str, box: scoring.Box | None) -> None:
    assert scoring.parse_box(text) == box


@given(boxes(), boxes())
def test_iou_is_symmetric_bounded_and_1_for_the_same_box(a: scoring.Box, b: scoring.Box) -> None:
    assert scoring.iou(a, b) == scoring.iou(b, a)
    assert 0 <= scoring.iou(a, b) <= 1
    assert scoring.iou(a, a) == 1
    assert scoring.parse_box(f"<box>{' '.join(map(str, a))}</box>") == a


def test_half_an_overlap_is_enough() -> None:
    assert scoring.iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert scoring.is_box_match("0 0 100 50", "<box>0 0 100 100</box>")
    assert not scoring.is_box_match("0 0 100 49", "<box>0 0 100 100</box>")


def test_character_accuracy_counts_edits_and_stops_at_0() -> None:
    assert scoring.score("abcd efgh", example("cer", "abcd\nefxh")) == pytest.approx(1 - 1 / 9)
    assert scoring.character_error_rate("a much longer text", "ab") > 1
    assert scoring.score("a much longer text", example("cer", "ab")) == 0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B. a dog", "B"),
        ("(B) a dog", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("Option A shows a cat, C a cow.\nAnswer: B", "B"),
        ("**Answer:** B", "B"),
        ("A dog", "B"),
        ("a dog.", "B"),
        ("I think it is B", "B"),
        ("A", "A"),
        ("A and B", None),
        ("B or C", None),
        ("E", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice_is_found(answer: str, letter: str | None) -> None:
    choices = ("a cat", "a dog", "a cow", "a horse")
    assert scoring.parse_choice(answer, choices) == letter
    assert scoring.score(answer, example("choice", "B", choices=choices)) == (letter == "B")


def test_containment_is_that_of_ocrbench() -> None:
    assert scoring.score("It says Open\nDaily.", example("contains", "open daily"))
    assert not scoring.score("It says closed.", example("contains", "open"))
    assert scoring.score("$ x ^ 2 $", example("contains_formula", "x^2"))
    assert not scoring.score("X^2", example("contains_formula", "x^2"))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ConfigError, match="no accepted answer"):
        scoring.score("a", example("exact"))
    with pytest.raises(ConfigError, match="unknown"):
        scoring.score("a", example("bleu", "a"))


@pytest.mark.parametrize(
    ("answer", "expected", "share"),
    [
        ('{"a": "1", "b": null}', '{"b": null, "a": "1"}', 1),
        ('{"a": "1"}', '{"a": "1", "b": "2"}', 1 / 2),
        ('{"a": "1", "b": "2", "c": "3"}', '{"a": "1"}', 1 / 3),
        ('{"a": "2"}', '{"a": "1"}', 0),
        ('{"b": "1"}', '{"a": "1"}', 0),
        ('[{"n": "a", "p": "1"}, {"n": "b", "p": "2"}]', '[{"n": "a", "p": "1"}, {"n": "c", "p": "2"}]', 3 / 4),
        ('[{"n": "a"}]', '[{"n": "a"}, {"n": "b"}]', 1 / 2),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": 1}', '{"a": 1.0}', 1),
        ('{"a": "1"}', '{"a": 1}', 0),
        ('{"a": []}', '{"a": {}}', 0),
        ("[]", "[]", 1),
        ("3", "3", 1),
        ('{"a": "1"', '{"a": "1"}', 0),
        ("the total is 3", '{"total": "3"}', 0),
        ("", '{"a": "1"}', 0),
        ("[" * 100_000, '{"a": "1"}', 0),
    ],
)
def test_fields_of_known_answers(answer: str, expected: str, share: float) -> None:
    assert scoring.field_accuracy(answer, expected) == pytest.approx(share)
    assert scoring.score(answer, example("fields", expected)) == pytest.approx(share)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v) | st.lists(v)
    )
)
def test_json_has_all_the_fields_of_itself(value: object) -> None:
    assert scoring.field_accuracy(json.dumps(value, indent=2), json.dumps(value)) == 1
