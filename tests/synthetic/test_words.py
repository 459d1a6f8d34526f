"""Text sources: right forms, right lengths, disjoint splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.synthetic.words.vocabulary import COMMON, common_words, draw_text, in_split, is_heldout

KINDS = ("short", "word", "letters", "number", "code", "phrase")


def test_common_words_are_unique_and_divided():
    assert len(set(COMMON)) == len(COMMON)
    train, heldout = set(common_words("train")), set(common_words("heldout"))
    assert train | heldout == set(COMMON)
    assert not train & heldout
    assert 0.05 < len(heldout) / len(COMMON) < 0.15


@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from(("train", "heldout")), st.integers(6, 30))
def test_text_is_in_its_split_short_enough_and_ascii(seed, kind, split, longest):
    if kind == "phrase":
        longest = max(longest, 12)
    text = draw_text(np.random.default_rng(seed), kind, split, longest)
    assert in_split(text, split)
    assert 1 <= len(text) <= longest
    assert text.isascii()
    assert text == " ".join(text.split())
    assert (len(text.split()) > 1) == (kind == "phrase")


@given(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1))
def test_case_and_punctuation_do_not_change_the_split(text):
    assert is_heldout(text) == is_heldout(text.upper()) == is_heldout(f"${text}.") == is_heldout(f"-{text}%")


def test_both_splits_never_share_a_drawn_text():
    drawn = {
        split: {draw_text(np.random.default_rng(i), kind, split) for kind in KINDS for i in range(300)}
        for split in ("train", "heldout")
    }
    assert not drawn["train"] & drawn["heldout"]


def test_unknown_kind_and_impossible_length_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="poem"):
        draw_text(rng, "poem", "train")
    with pytest.raises(ConfigError, match="at most 2"):
        draw_text(rng, "short", "train", max_length=2)
