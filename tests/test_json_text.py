"""JSON is read as its standard has it, and text is what UTF-8 can carry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.json_text import is_text, read_json


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_is_refused_wherever_it_stands(constant: str) -> None:
    for text in (constant, f"[1, {constant}]", f'{{"a": {constant}}}'.encode()):
        with pytest.raises(ValueError, match=f"{constant} is not JSON"):
            read_json(text)
    assert read_json(f'["{constant}", 1e5, null]') == [constant, 1e5, None]


@given(st.text(st.characters()))
def test_text_is_what_has_no_half_of_a_surrogate_pair(value: str) -> None:
    assert is_text(value) == (not any("\ud800" <= character <= "\udfff" for character in value))
