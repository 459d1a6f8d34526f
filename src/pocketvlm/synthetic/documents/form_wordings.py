"""Labels of forms, and how forms are asked about: a field, a box to tick, how many there are."""

from __future__ import annotations

from pocketvlm.synthetic.words.values import ValueKind, Wordings

LABELS: dict[str, ValueKind] = {
    **dict.fromkeys(("Name", "City", "Town", "Street", "Country", "Team", "School", "Job", "Company"), "word"),
    **dict.fromkeys(("No.", "Age", "Room", "Seat", "Weight", "Page"), "count"),
    **dict.fromkeys(("Date", "Birthday", "Start", "End"), "date"),
    **dict.fromkeys(("Code", "Ref", "Flight"), "code"),
    **dict.fromkeys(("Amount", "Fee", "Total", "Rent", "Price"), "amount"),
    "Time": "time",
    "Phone": "phone",
}
#: What questions call a label, where it is not the label in small letters.
SPOKEN = {"No.": "number"}
BOX_LABELS = ("Member", "Paid", "New", "Urgent", "Gift", "Sent", "Student", "Open", "Ready", "Refund", "Repair", "Call")

FIELD_QUESTIONS = Wordings(
    (
        "What is the {label}?",
        "Read the {label}.",
        "What does the form say for {label}?",
        "What's the {label}",
        "{label}?",
    ),
    heldout=("Give me the {label}.", "Which {label} is given?", "{label}:"),
)
AMOUNT_QUESTIONS = Wordings(
    (*FIELD_QUESTIONS.train, "How much is the {label}?"), heldout=(*FIELD_QUESTIONS.heldout, "{label}: how much?")
)
TICK_QUESTIONS = Wordings(
    ("Is {label} ticked?", "Is the box {label} ticked?", "Is there a tick at {label}?", "{label} ticked?"),
    heldout=("Has {label} been ticked?", "{label}: is it ticked?"),
)
WHICH_QUESTIONS = Wordings(
    ("Which box is ticked?", "What is ticked?", "Which one is ticked?", "ticked box?"),
    heldout=("What's the ticked box", "At which box is the tick?"),
)
TICKS_QUESTIONS = Wordings(
    (
        "How many boxes are ticked?",
        "What is the number of ticked boxes?",
        "How many ticks are there?",
        "how many ticked boxes",
    ),
    heldout=("Count the ticked boxes.", "number of ticks?"),
)
BOXES_QUESTIONS = Wordings(
    (
        "How many boxes are there?",
        "How many boxes does the form have?",
        "What is the number of boxes?",
        "how many boxes",
    ),
    heldout=("Count the boxes to tick.", "number of boxes?"),
)
