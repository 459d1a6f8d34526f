"""Two or three pictures together: what differs, which one shows what, where there are more, what each of them says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pocketvlm.synthetic.drawing.figures import (
    COLOURS,
    SHAPES,
    other_name,
    plural,
    with_article,
)
from pocketvlm.synthetic.drawing.lines import wear
from pocketvlm.synthetic.sample import Question, Sample, Split, choose_layout
from pocketvlm.synthetic.scenes.cards import (
    HELDOUT_FORMS,
    TRAIN_FORMS,
    Card,
    paint,
)
from pocketvlm.synthetic.scenes.pair_scenes import NOTHING, Drawer, PairLevel, Scene
from pocketvlm.synthetic.words.values import ORDINALS, Wordings, ask, ask_absent, draw_value, one_of

DIFFERENCE_QUESTIONS = Wordings(
    (
        "What is different in the second picture?",
        "What has changed in the second picture?",
        "What is the difference between the pictures?",
        "what changed",
    ),
    heldout=("In what do the pictures differ?", "What's different in the second picture"),
)
SAME_QUESTIONS = Wordings(
    (
        "Are both pictures the same?",
        "Are the two pictures the same?",
        "Do both pictures show the same?",
        "same pictures?",
    ),
    heldout=("Is the second picture the same as the first?", "Are the pictures equal?"),
)
WHICH_QUESTIONS = Wordings(
    (
        "Which picture shows {name}?",
        "Which picture has {name}?",
        "In which picture is {name}?",
        "{name}: which picture?",
    ),
    heldout=("Find the picture with {name}.", "Where is {name}, in which picture?"),
)
COLOUR_QUESTIONS = Wordings(
    (
        "What colour is the {name} in the {place} picture?",
        "In the {place} picture, what colour is the {name}?",
        "What is the colour of the {name} in the {place} picture?",
        "colour of the {name} in the {place} picture?",
    ),
    heldout=("Which colour is the {name} in the {place} picture?", "{place} picture: what colour is the {name}?"),
)
SHAPE_QUESTIONS = Wordings(
    (
        "What shape is {name} in the {place} picture?",
        "Which shape is {name} in the {place} picture?",
        "In the {place} picture, what shape is {name}?",
        "{name} shape in the {place} picture?",
    ),
    heldout=("Name the {name} shape in the {place} picture.", "{place} picture: what shape is {name}?"),
)
COUNT_QUESTIONS = Wordings(
    (
        "How many {name} are in the {place} picture?",
        "How many {name} does the {place} picture show?",
        "In the {place} picture, how many {name} are there?",
        "how many {name} in the {place} picture",
    ),
    heldout=("Count the {name} in the {place} picture.", "{place} picture: how many {name}?"),
)
MORE_QUESTIONS = Wordings(
    ("Which picture has {more} {name}?", "Which picture shows {more} {name}?", "{more} {name}: which picture?"),
    heldout=("In which picture are {more} {name}?", "Find the picture with {more} {name}."),
)
SUM_QUESTIONS = Wordings(
    ("How many {name} are there in all?", "How many {name} are there in all pictures?", "how many {name} in all"),
    heldout=("Count the {name} in all pictures.", "How many {name} do you see in all?"),
)
READ_QUESTIONS = Wordings(
    (
        "What is written in the {place} picture?",
        "What does the {place} picture say?",
        "Read the {place} picture.",
        "text of the {place} picture?",
    ),
    heldout=("What's written in the {place} picture", "{place} picture: what does it say?"),
)
LARGER_QUESTIONS = Wordings(
    (
        "Which picture shows the {extreme} number?",
        "Which picture has the {extreme} number?",
        "In which picture is the {extreme} number?",
        "{extreme} number: which picture?",
    ),
    heldout=("Find the picture with the {extreme} number.", "Where is the {extreme} number, in which picture?"),
)

ABSENT_SHARE = 0.3


def draw_pair(rng: np.random.Generator, level: PairLevel, split: Split, task: str = "pair") -> Sample:
    """Two or three pictures of `level`; words, numbers, fonts and layout families are all from `split`."""
    form = choose_layout(rng, split, TRAIN_FORMS, HELDOUT_FORMS)
    drawer = Drawer(rng, level, split, form)
    scene = drawer.scene()
    canvases = [paint(card, ground) for card, ground in zip(scene.cards, scene.grounds, strict=True)]
    images = tuple(np.ascontiguousarray(wear(rng, canvas.image, level.wear)) for canvas in canvases)
    questions = ask_about(rng, scene, level, split)
    characters, objects = zip(*((canvas.characters, canvas.objects) for canvas in canvases), strict=True)
    return Sample(images, questions, task, characters, layout=form, objects=objects)


def ask_about(rng: np.random.Generator, scene: Scene, level: PairLevel, split: Split) -> tuple[Question, ...]:
    """Questions on `scene`, one a topic; where two pictures differ in one thing, that is asked first."""
    cards = scene.cards
    topics = {
        "which": _ask_which(rng, split, cards),
        "look": _ask_look(rng, split, cards),
        "count": _ask_count(rng, split, cards),
        "more": _ask_more(rng, split, cards),
        "read": _ask_read(rng, split, cards),
        "larger": _ask_larger(rng, split, cards),
    }
    asked = [one_of(rng, questions) for questions in topics.values() if questions]
    rest = [asked[i] for i in rng.permutation(len(asked))]
    if scene.change:
        first = [ask(rng, split, DIFFERENCE_QUESTIONS, scene.change)]
        # Without a change it is always asked, or the answer would nearly always be no.
        if scene.change == NOTHING or rng.random() < 0.4:
            first.append(ask(rng, split, SAME_QUESTIONS, "yes" if scene.change == NOTHING else "no"))
        rest = [*first, *rest]
    questions = rest[: level.questions]
    if rng.random() < ABSENT_SHARE or not questions:
        questions.append(_ask_not_there(rng, scene, level, split))
    return tuple(questions)


def _ask_which(rng: np.random.Generator, split: Split, cards: Sequence[Card]) -> list[Question]:
    """What only one of the pictures shows."""
    shown = [{f.name for f in card.figures} | {f.shape for f in card.figures} for card in cards]
    counts = Counter(name for names in shown for name in names)
    out = [
        ask(rng, split, WHICH_QUESTIONS, ORDINALS[i], name=with_article(name))
        for i, names in enumerate(shown)
        for name in sorted(names)
        if counts[name] == 1
    ]
    texts = Counter(card.text for card in cards)
    for i, card in enumerate(cards):
        if card.text and texts[card.text] == 1:
            out.append(ask(rng, split, WHICH_QUESTIONS, ORDINALS[i], name=f"the {_kind(card.text)} {card.text}"))
    return out


def _kind(text: str) -> str:
    return "number" if text.isdigit() else "word"


def _ask_look(rng: np.random.Generator, split: Split, cards: Sequence[Card]) -> list[Question]:
    out = []
    for place, card in zip(ORDINALS, cards, strict=False):
        shapes, colours = Counter(f.shape for f in card.figures), Counter(f.colour for f in card.figures)
        for figure in card.figures:
            if shapes[figure.shape] == 1:
                out.append(ask(rng, split, COLOUR_QUESTIONS, figure.colour, name=figure.shape, place=place))
            if colours[figure.colour] == 1:
                out.append(ask(rng, split, SHAPE_QUESTIONS, figure.shape, name=figure.colour, place=place))
    return out


def _counts(cards: Sequence[Card]) -> dict[str, list[int]]:
    """How many shapes, and how many of each of them, are in each picture."""
    names = sorted({f.shape for card in cards for f in card.figures})
    counts = {plural(name): [sum(f.shape == name for f in card.figures) for card in cards] for name in names}
    return {"shapes": [len(card.figures) for card in cards]} | counts


def _ask_count(rng: np.random.Generator, split: Split, cards: Sequence[Card]) -> list[Question]:
    if not any(card.figures for card in cards):
        return []
    out = []
    for name, counts in _counts(cards).items():
        i = int(rng.integers(len(cards)))
        out.append(ask(rng, split, COUNT_QUESTIONS, str(counts[i]), name=name, place=ORDINALS[i]))
        if len(cards) == 2 and sum(counts) <= 8:
            out.append(ask(rng, split, SUM_QUESTIONS, str(sum(counts)), name=name))
    return out


def _ask_more(rng: np.random.Generator, split: Split, cards: Sequence[Card]) -> list[Question]:
    out = []
    for name, counts in _counts(cards).items():
        words = ("more", "fewer") if len(cards) == 2 else ("the most", "the fewest")
        for word, extreme in zip(words, (max(counts), min(counts)), strict=True):
            if counts.count(extreme) == 1:
                out.append(ask(rng, split, MORE_QUESTIONS, ORDINALS[counts.index(extreme)], more=word, name=name))
    return out


def _ask_read(rng: np.random.Generator, split: Split, cards: Sequence[Card]) -> list[Question]:
    return [
        ask(rng, split, READ_QUESTIONS, card.text, place=place)
        for place, card in zip(ORDINALS, cards, strict=False)
        if card.text
    ]


def _ask_larger(rng: np.random.Generator, split: Split, cards: Sequence[Card]) -> list[Question]:
    if not all(card.text.isdigit() for card in cards):
        return []
    values = [int(card.text) for card in cards]
    words = ("larger", "smaller") if len(cards) == 2 else ("largest", "smallest")
    return [
        ask(rng, split, LARGER_QUESTIONS, ORDINALS[values.index(extreme)], extreme=word)
        for word, extreme in zip(words, (max(values), min(values)), strict=True)
        if values.count(extreme) == 1
    ]


def _ask_not_there(rng: np.random.Generator, scene: Scene, level: PairLevel, split: Split) -> Question:
    """About a figure, a word or a number that no picture shows, or not the one that is asked about."""
    cards = scene.cards
    texts = [card.text for card in cards if card.text]
    names = {f.name for card in cards for f in card.figures}
    if texts and (not names or rng.random() < 0.4):
        while True:
            is_number = texts[0].isdigit()
            text = draw_value(rng, "count" if is_number else "word", split, level.letters)
            if text not in texts:
                return ask_absent(rng, split, WHICH_QUESTIONS, name=f"the {_kind(text)} {text}")
    i = int(rng.integers(len(cards)))
    missing = [shape for shape in SHAPES if shape not in {f.shape for f in cards[i].figures}]
    if rng.random() < 0.4 and cards[i].figures:
        return ask_absent(rng, split, COLOUR_QUESTIONS, name=one_of(rng, missing), place=ORDINALS[i])
    name = other_name(rng, names, tuple(COLOURS))
    return ask_absent(rng, split, WHICH_QUESTIONS, name=with_article(name))
