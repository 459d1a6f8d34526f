"""Invoices: number, date, customer, lines with quantities and amounts, tax and a total that is their sum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from pocketvlm.synthetic.documents.json_questions import Value, ask_fields
from pocketvlm.synthetic.documents.receipts import ITEMS, SUBTOTAL_QUESTIONS, TAX_QUESTIONS, Item
from pocketvlm.synthetic.drawing.fonts import families
from pocketvlm.synthetic.drawing.lines import blend, draw_background, wear
from pocketvlm.synthetic.drawing.paper import Fonts, Row, fit_sheet, print_sheet
from pocketvlm.synthetic.levels import PrintedLevel, draw_size, exactly, no_room
from pocketvlm.synthetic.sample import Question, Sample, Split, choose_layout
from pocketvlm.synthetic.words.values import (
    DATE_FORMS,
    Wordings,
    ask,
    ask_absent,
    draw_day,
    draw_names,
    draw_value,
    format_date,
    integer_in,
    one_of,
)
from pocketvlm.synthetic.words.vocabulary import in_split

#: Which part of the head stands where; "dates last" and "sender last" are held out.
TRAIN_LAYOUTS = ("number first", "customer first", "date first", "centred", "dotted")
HELDOUT_LAYOUTS = ("dates last", "sender last")

TOTAL_QUESTIONS = Wordings(
    ("What is the total?", "How much is the total?", "Read the total.", "What's the total amount", "total?"),
    heldout=("How much is to be paid in all?", "Give me the total."),
)
NUMBER_QUESTIONS = Wordings(
    (
        "What is the invoice number?",
        "Read the invoice number.",
        "What's the number of the invoice",
        "invoice number?",
    ),
    heldout=("Which number does the invoice have?", "Invoice no.?"),
)
DATE_QUESTIONS = Wordings(
    ("What is the date?", "What is the date of the invoice?", "Read the invoice date.", "date?"),
    heldout=("When was the invoice written?", "Give me the date of the invoice."),
)
DUE_QUESTIONS = Wordings(
    ("What is the due date?", "When is it due?", "Read the due date.", "due date?"),
    heldout=("By when must it be paid?", "When's the payment due"),
)
CUSTOMER_QUESTIONS = Wordings(
    ("Who is the customer?", "What is the name of the customer?", "Read the name of the customer.", "customer?"),
    heldout=("Who is the invoice for?", "Who has to pay?"),
)
SENDER_QUESTIONS = Wordings(
    ("Who is the invoice from?", "Which shop is the invoice from?", "Who sent the invoice?", "sender?"),
    heldout=("Who wrote the invoice?", "name of the sender"),
)
AMOUNT_QUESTIONS = Wordings(
    ("What is the amount for {name}?", "How much is the {name}?", "What's the amount for {name}", "amount for {name}?"),
    heldout=("How much is charged for {name}?", "{name}: amount?"),
)
QUANTITY_QUESTIONS = Wordings(
    ("What is the quantity of {name}?", "How many {name} are there?", "quantity of {name}?"),
    heldout=("How many {name} are on the invoice?", "{name}: how many?"),
)
UNIT_QUESTIONS = Wordings(
    (
        "What is the unit price of {name}?",
        "What does one {name} cost?",
        "Price of one {name}?",
        "unit price of {name}?",
    ),
    heldout=("How much is a single {name}?", "{name}: unit price?"),
)
ABSENT_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLevel(PrintedLevel):
    """How hard the invoices are.

    Attributes:
        items: fewest and most lines.
        extras: probability of each optional part: sender, date, due date, customer, quantities, tax.
        questions: most questions but that about what is not there.
    """

    items: tuple[int, int]
    extras: float
    questions: int = 4


INVOICE_LEVELS: tuple[InvoiceLevel, ...] = (
    InvoiceLevel(sizes=(exactly(224, 224), exactly(280, 168)), items=(1, 2), font_pixels=(14, 19), extras=0.4),
    InvoiceLevel(
        sizes=(((280, 336), (280, 336)),),
        items=(2, 3),
        font_pixels=(12, 18),
        extras=0.7,
        questions=5,
        variety=0.5,
        wear=0.4,
    ),
    InvoiceLevel(
        sizes=(((448, 560), (420, 448)),),
        items=(3, 6),
        font_pixels=(12, 20),
        extras=0.9,
        questions=6,
        variety=0.6,
        wear=0.5,
    ),
)


@dataclass(frozen=True, slots=True)
class Invoice:
    """What an invoice says; empty or None where a part is not printed. `cents` of an item are those of its line."""

    number: str
    items: tuple[Item, ...]
    sender: str = ""
    date: str = ""
    due: str = ""
    customer: str = ""
    has_quantities: bool = False
    tax_cents: int | None = None

    @property
    def subtotal_cents(self) -> int:
        return sum(item.cents for item in self.items)

    @property
    def total_cents(self) -> int:
        return self.subtotal_cents + (self.tax_cents or 0)


def money(cents: int) -> str:
    """An amount as it is printed."""
    return f"{cents // 100}.{cents % 100:02d}"


def draw_invoice(rng: np.random.Generator, level: InvoiceLevel, split: Split, task: str = "invoice") -> Sample:
    """A picture of an invoice of `level`; number, names, asked amounts, fonts and layout family are from `split`."""
    height, width = draw_size(rng, level.sizes)
    layout = choose_layout(rng, split, TRAIN_LAYOUTS, HELDOUT_LAYOUTS)
    margin = int(rng.integers(6, 12))
    for attempt in range(300):
        # What does not fit is drawn anew, and in the end as the shortest invoice of the level.
        eased = level if attempt < 60 else replace(level, items=(level.items[0],) * 2, extras=0.0)
        family, invoice = one_of(rng, families(split)), draw_contents(rng, eased, split)
        fonts = Fonts(family.regular, family.bold)
        largest = integer_in(rng, level.font_pixels)
        sheet = fit_sheet(
            lay_out(invoice, layout),
            fonts,
            (level.font_pixels[0], largest),
            float(rng.uniform(1.3, 1.6)),
            width - 2 * margin,
            height - 2 * margin,
        )
        if sheet:
            break
    else:
        raise no_room("invoice", level, height, width)
    ink = np.zeros((height, width), np.uint8)
    top = margin + int(rng.integers(height - 2 * margin - sheet.height + 1))
    boxes = print_sheet(sheet, ink, margin, top, width - 2 * margin, dotted=layout == "dotted")
    shade = int(rng.integers(0, 25)) if rng.random() < level.variety else 0
    paper, dark = (255 - shade, 255 - shade, 255 - shade // 2), int(rng.integers(0, 60))
    image = blend(draw_background(rng, height, width, paper, level.variety * 0.3), ink, (dark, dark, dark))
    image = np.ascontiguousarray(wear(rng, image, level.wear))
    questions = (*ask_about(rng, invoice, split, level), *ask_fields(rng, split, json_fields(invoice)))
    return Sample((image,), questions, task, (tuple(boxes),), layout=layout)


def draw_contents(rng: np.random.Generator, level: InvoiceLevel, split: Split) -> Invoice:
    """What an invoice of `level` says; its total belongs to `split`."""

    def happens() -> bool:
        return bool(rng.random() < level.extras)

    sender, customer = draw_names(rng, split, 2, 8)
    number = draw_value(rng, one_of(rng, ("code", "count")), split)
    has_quantities, has_tax = happens(), happens()
    names = [ITEMS[i] for i in rng.choice(len(ITEMS), integer_in(rng, level.items), replace=False)]
    kept = [happens() for _ in range(4)]
    date, due = _draw_dates(rng, split)
    while True:
        quantities = [int(rng.integers(1, 10)) if has_quantities else 1 for _ in names]
        units = [int(np.exp(rng.uniform(np.log(100), np.log(9000)))) for _ in names]
        items = tuple(Item(n, q * u, q) for n, q, u in zip(names, quantities, units, strict=True))
        subtotal = sum(item.cents for item in items)
        invoice = Invoice(
            number,
            items,
            sender if kept[0] else "",
            date if kept[1] else "",
            due if kept[2] else "",
            customer if kept[3] else "",
            has_quantities,
            (subtotal * int(rng.integers(4, 21)) + 50) // 100 if has_tax else None,
        )
        if in_split(money(invoice.total_cents), split):
            return invoice


def _draw_dates(rng: np.random.Generator, split: Split) -> tuple[str, str]:
    """The date of an invoice and the day it is due, a week to two months later."""
    form = one_of(rng, DATE_FORMS)
    while True:
        day = draw_day(rng)
        date, due = (format_date(day + timedelta(days), form) for days in (0, int(rng.integers(7, 61))))
        if in_split(date, split) and in_split(due, split):
            return date, due


def lay_out(invoice: Invoice, layout: str) -> list[Row]:
    """The rows of `invoice` in `layout`."""
    title = Row("INVOICE", bold=True, centred=layout == "centred", scale=1.2)
    sender = [Row(invoice.sender, bold=True, centred=layout == "centred")] if invoice.sender else []
    number = [Row("Invoice No.", invoice.number)]
    dates = [Row(label, date) for label, date in (("Date", invoice.date), ("Due", invoice.due)) if date]
    customer = [Row("Bill to", invoice.customer)] if invoice.customer else []
    head = {
        "customer first": [*sender, *customer, *number, *dates],
        "date first": [*sender, *dates, *number, *customer],
        "dates last": [*sender, *number, *customer],
        "sender last": [*number, *dates, *customer],
    }.get(layout, [*sender, *number, *dates, *customer])
    lines = []
    for i, item in enumerate(invoice.items):
        unit = f"{item.quantity} x {item.name} @ {money(item.cents // item.quantity)}"
        lines.append(Row(unit if invoice.has_quantities else item.name, money(item.cents), rule=i == 0))
    if invoice.tax_cents is not None:
        lines += [Row("Subtotal", money(invoice.subtotal_cents), rule=True), Row("Tax", money(invoice.tax_cents))]
    lines.append(Row("TOTAL", money(invoice.total_cents), bold=True, rule=True, scale=1.1))
    foot = {"dates last": dates, "sender last": sender}.get(layout, [])
    return [title, *head, *lines, *foot]


def ask_about(rng: np.random.Generator, invoice: Invoice, split: Split, level: InvoiceLevel) -> tuple[Question, ...]:
    """Questions on `invoice`, the total first; amounts of the other split are not asked for."""
    parts = (
        (NUMBER_QUESTIONS, invoice.number),
        (DATE_QUESTIONS, invoice.date),
        (DUE_QUESTIONS, invoice.due),
        (CUSTOMER_QUESTIONS, invoice.customer),
        (SENDER_QUESTIONS, invoice.sender),
        (TAX_QUESTIONS, "" if invoice.tax_cents is None else money(invoice.tax_cents)),
        (SUBTOTAL_QUESTIONS, "" if invoice.tax_cents is None else money(invoice.subtotal_cents)),
    )
    rest = [ask(rng, split, wordings, answer) for wordings, answer in parts if answer and in_split(answer, split)]
    for item in invoice.items:
        name, unit = item.name.lower(), money(item.cents // item.quantity)
        if in_split(money(item.cents), split):
            rest.append(ask(rng, split, AMOUNT_QUESTIONS, money(item.cents), name=name))
        if invoice.has_quantities:
            rest.append(ask(rng, split, QUANTITY_QUESTIONS, str(item.quantity), name=name))
            if in_split(unit, split):
                rest.append(ask(rng, split, UNIT_QUESTIONS, unit, name=name))
    total = ask(rng, split, TOTAL_QUESTIONS, money(invoice.total_cents))
    kept = [total, *(rest[i] for i in rng.permutation(len(rest))[: level.questions - 1])]
    absent = [wordings for wordings, answer in parts if not answer]
    if absent and rng.random() < ABSENT_SHARE:
        kept.append(ask_absent(rng, split, one_of(rng, absent)))
    return tuple(kept)


def json_fields(invoice: Invoice) -> dict[str, Value]:
    """What `invoice` says, as it is printed."""
    has_tax = invoice.tax_cents is not None
    return {
        "number": invoice.number,
        "date": invoice.date or None,
        "due": invoice.due or None,
        "customer": invoice.customer or None,
        "sender": invoice.sender or None,
        "items": [{"name": item.name, "amount": money(item.cents)} for item in invoice.items],
        "subtotal": money(invoice.subtotal_cents) if has_tax else None,
        "tax": money(invoice.tax_cents or 0) if has_tax else None,
        "total": money(invoice.total_cents),
    }
