"""Invoices: what is asked is printed, sums are right, splits share no layout."""

from __future__ import annotations

import contextlib
from datetime import datetime

import numpy as np
import pytest
from helpers.wordings import read
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic import NOT_THERE, make_sample
from pocketvlm.synthetic.documents import invoices
from pocketvlm.synthetic.documents.invoices import (
    HELDOUT_LAYOUTS,
    INVOICE_LEVELS,
    TRAIN_LAYOUTS,
    InvoiceLevel,
    draw_contents,
    lay_out,
    money,
)
from pocketvlm.synthetic.levels import exactly
from pocketvlm.synthetic.words.values import DATE_FORMS
from pocketvlm.synthetic.words.vocabulary import in_split

SPLITS = ("train", "heldout")
LEVELS = range(len(INVOICE_LEVELS))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.sampled_from(LEVELS), split=st.sampled_from(SPLITS))
def test_the_total_is_the_sum_of_what_is_printed(seed: int, level: int, split: str) -> None:
    invoice = draw_contents(np.random.default_rng(seed), INVOICE_LEVELS[level], split)
    for layout in (*TRAIN_LAYOUTS, *HELDOUT_LAYOUTS):
        rows = {row.left: row.right for row in lay_out(invoice, layout)}
        assert len(rows) == len(lay_out(invoice, layout))
        cents = {left: round(100 * float(right)) for left, right in rows.items() if "." in right and right[-3] == "."}
        printed = sum(
            v for left, v in cents.items() if left not in ("TOTAL", "Subtotal") and left in names(invoice) | {"Tax"}
        )
        assert cents["TOTAL"] == printed == invoice.total_cents
        for item in invoice.items:
            assert item.cents % item.quantity == 0
    assert in_split(money(invoice.total_cents), split)


def names(invoice) -> set[str]:
    if not invoice.has_quantities:
        return {item.name for item in invoice.items}
    return {f"{i.quantity} x {i.name} @ {money(i.cents // i.quantity)}" for i in invoice.items}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.sampled_from(LEVELS), split=st.sampled_from(SPLITS))
def test_answers_are_printed_and_of_the_split(seed: int, level: int, split: str) -> None:
    sample = make_sample("invoice", seed, split, level)
    printed = "".join(box.character for box in sample.characters[0])
    assert read(invoices, sample.questions[0].text).group == "TOTAL_QUESTIONS"
    assert len({q.text for q in sample.questions}) == len(sample.questions)
    for text, answer, kind in sample.questions:
        if kind == "absent":
            assert answer == NOT_THERE
            continue
        if kind == "json":
            continue
        assert answer.replace(" ", "") in printed
        if read(invoices, text).group != "QUANTITY_QUESTIONS":  # one digit: a closed class
            assert in_split(answer, split)
    height, width = sample.image.shape[:2]
    for _, left, top, right, bottom in sample.characters[0]:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_what_is_absent_is_not_printed() -> None:
    label = {"TAX": "Tax", "DATE": "Date", "DUE": "Due", "CUSTOMER": "Billto", "SUBTOTAL": "Subtotal"}
    found = 0
    for seed in range(120):
        sample = make_sample("invoice", (3, seed), "train", seed % 2)
        printed = "".join(box.character for box in sample.characters[0])
        for question in sample.questions:
            if question.kind == "absent":
                asked = read(invoices, question.text).group.removesuffix("_QUESTIONS")
                found += asked in label
                assert asked == "SENDER" or label[asked] not in printed
    assert found > 5


def test_the_same_seed_draws_the_same_invoice_and_splits_share_no_layout() -> None:
    layouts = {
        split: {make_sample("invoice", (9, i), split, i % 3).layout for i in range(60)}  # type: ignore[arg-type]
        for split in SPLITS
    }
    assert layouts == {"train": set(TRAIN_LAYOUTS), "heldout": set(HELDOUT_LAYOUTS)}
    first, second = (make_sample("invoice", (3, 1), "train", 1) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert first.questions == second.questions


def test_a_picture_that_is_too_small_is_refused() -> None:
    tiny = InvoiceLevel(sizes=(exactly(40, 40),), items=(1, 1), font_pixels=(14, 14), extras=0.0)
    with pytest.raises(ConfigError, match=r"no invoice .* fits into 40 x 40"):
        make_sample("invoice", 1, "train", tiny)


def test_an_invoice_is_due_after_its_date() -> None:
    rng = np.random.default_rng(3)
    days = 0
    for _ in range(60):
        invoice = draw_contents(rng, INVOICE_LEVELS[1], "train")
        for form in DATE_FORMS if invoice.date and invoice.due else ():
            with contextlib.suppress(ValueError):
                wait = datetime.strptime(invoice.due, form) - datetime.strptime(invoice.date, form)
                assert 7 <= wait.days <= 60
                days += 1
    assert days > 5
