"""How tables are asked about: a cell, its row, the extremes of a column, and what stands where."""

from __future__ import annotations

from pocketvlm.synthetic.words.values import Wordings

CELL_QUESTIONS = Wordings(
    (
        "What is the {heading} of {name}?",
        "What is the {heading} for {name}?",
        "What {heading} does {name} have?",
        "{heading} of {name}?",
        "{name}: {heading}?",
    ),
    heldout=("Read the {heading} of {name}.", "What's {name}'s {heading}"),
)
#: Of amounts, and of headings in the plural.
AMOUNT_QUESTIONS = Wordings(
    (*CELL_QUESTIONS.train, "How much is the {heading} of {name}?"),
    heldout=(*CELL_QUESTIONS.heldout, "How much is {name}'s {heading}?"),
)
MANY_QUESTIONS = Wordings(
    (*CELL_QUESTIONS.train, "How many {heading} does {name} have?"),
    heldout=(*CELL_QUESTIONS.heldout, "{name}: how many {heading}?"),
)
EXTREME_QUESTIONS = Wordings(
    (
        "Which {thing} has the {extreme} {heading}?",
        "Which row has the {extreme} {heading}?",
        "What has the {extreme} {heading}?",
        "{thing} with the {extreme} {heading}?",
    ),
    heldout=("Find the {thing} with the {extreme} {heading}.", "{extreme} {heading}: which {thing}?"),
)
OWNER_QUESTIONS = Wordings(
    (
        "Which {thing} has the {heading} {cell}?",
        "Which row has the {heading} {cell}?",
        "What has the {heading} {cell}?",
        "{thing} with the {heading} {cell}?",
    ),
    heldout=("Find the {thing} with the {heading} {cell}.", "{heading} {cell}: which {thing}?"),
)
PLACE_QUESTIONS = Wordings(
    (
        "What is the {ordinal} {thing}?",
        "Which {thing} is {ordinal}?",
        "Read the {ordinal} {thing}.",
        "{ordinal} {thing}?",
    ),
    heldout=("What's the {ordinal} {thing} of the table", "Which {thing} comes {ordinal}?"),
)
ROWS_QUESTIONS = Wordings(
    (
        "How many rows are below the headings?",
        "How many rows are there below the headings?",
        "What is the number of rows below the headings?",
        "how many rows below the headings",
    ),
    heldout=("Count the rows below the headings.", "number of rows without the headings?"),
)
COLUMNS_QUESTIONS = Wordings(
    (
        "How many columns are there?",
        "How many columns does the table have?",
        "What is the number of columns?",
        "how many columns",
    ),
    heldout=("Count the columns of the table.", "number of columns?"),
)
HEADING_QUESTIONS = Wordings(
    (
        "What is the heading of the {ordinal} column?",
        "What is the {ordinal} heading?",
        "Read the {ordinal} heading.",
        "{ordinal} heading?",
    ),
    heldout=("What's the {ordinal} column called", "Give me the {ordinal} heading."),
)
