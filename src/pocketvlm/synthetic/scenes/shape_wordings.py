"""How pictures of shapes are asked about: how many, which colour, which shape, where, and how they stand."""

from __future__ import annotations

from pocketvlm.synthetic.words.values import Wordings

COUNT_QUESTIONS = Wordings(
    ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.", "how many shapes"),
    heldout=("What is the number of shapes?", "number of shapes?"),
)
COUNT_COLOUR_QUESTIONS = Wordings(
    (
        "How many {name} shapes are there?",
        "How many {name} shapes do you see?",
        "Count the {name} shapes.",
        "how many {name} shapes",
    ),
    heldout=("What is the number of {name} shapes?", "number of {name} shapes?"),
)
COUNT_SHAPE_QUESTIONS = Wordings(
    ("How many {name} are there?", "How many {name} do you see?", "Count the {name}.", "how many {name}"),
    heldout=("What is the number of {name}?", "number of {name}?"),
)
COLOUR_QUESTIONS = Wordings(
    (
        "What colour is the {name}?",
        "What is the colour of the {name}?",
        "Which colour is the {name}?",
        "colour of the {name}?",
    ),
    heldout=("What's the colour of the {name}", "the {name}: which colour?"),
)
SHAPE_QUESTIONS = Wordings(
    ("What shape is {name}?", "Which shape is {name}?", "What is the {name} shape?", "{name} shape?"),
    heldout=("What's the {name} shape", "Name the {name} shape."),
)
SIDE_QUESTIONS = Wordings(
    (
        "Is the {name} on the left or on the right?",
        "Is the {name} left or right?",
        "On which side is the {name}, left or right?",
        "{name}: left or right?",
    ),
    heldout=("Left or right: where is the {name}?", "Is the {name} to the left or to the right?"),
)
HEIGHT_QUESTIONS = Wordings(
    (
        "Is the {name} at the top or at the bottom?",
        "Is the {name} top or bottom?",
        "Where is the {name}, at the top or at the bottom?",
        "{name}: top or bottom?",
    ),
    heldout=("Top or bottom: where is the {name}?",),
)
CORNER_QUESTIONS = Wordings(
    (
        "In which corner is the {name}?",
        "Which corner is the {name} in?",
        "The {name} is in which corner?",
        "corner of the {name}?",
    ),
    heldout=("What corner is the {name} in", "Name the corner of the {name}."),
)
IN_CORNER_QUESTIONS = Wordings(
    (
        "Which shape is in the {place} corner?",
        "What shape is in the {place} corner?",
        "What is in the {place} corner?",
        "{place} corner?",
    ),
    heldout=("What's in the {place} corner", "Name the shape in the {place} corner."),
)
RELATION_QUESTIONS = Wordings(
    (
        "Is the {first} {relation} the {second}?",
        "Does the {first} stand {relation} the {second}?",
        "{first} {relation} the {second}?",
    ),
    heldout=("Is it true that the {first} is {relation} the {second}?",),
)
NEIGHBOUR_QUESTIONS = Wordings(
    (
        "What is {relation} the {name}?",
        "Which shape is {relation} the {name}?",
        "What shape is {relation} the {name}?",
        "shape {relation} the {name}?",
    ),
    heldout=("What's {relation} the {name}", "Name the shape {relation} the {name}."),
)
SIZE_QUESTIONS = Wordings(
    (
        "Which is {size}, the {first} or the {second}?",
        "Which shape is {size}, the {first} or the {second}?",
        "What is {size}, the {first} or the {second}?",
        "{size}: the {first} or the {second}?",
    ),
    heldout=("The {first} or the {second}: which is {size}?",),
)
EXISTS_QUESTIONS = Wordings(
    ("Is there {name}?", "Do you see {name}?", "Can you see {name}?", "Is {name} in the picture?"),
    heldout=("Does the picture show {name}?", "{name}: is it there?"),
)
BOX_QUESTIONS = Wordings(
    (
        "Where is the {name}? Answer with a box.",
        "Find the {name}. Answer with a box.",
        "Give the box of the {name}.",
        "box of the {name}?",
    ),
    heldout=("Draw a box around the {name}.", "the {name}, as a box"),
)
