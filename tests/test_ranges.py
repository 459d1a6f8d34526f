"""Ranges of options: bounds are included but where they are open, and nothing else passes for a number."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pocketvlm.errors import ConfigError
from pocketvlm.ranges import MAX_INTEGER, Range, plain_number


@pytest.mark.parametrize(
    ("allowed", "taken", "refused"),
    [
        (Range(int, 1, 5), [1, 5, np.int64(3)], [0, 6, 2.0, True, None, "3"]),
        (Range(int, 1), [MAX_INTEGER], [MAX_INTEGER + 1]),
        (
            Range(float, -1, 1),
            [-1, 1, 0.5, np.float32(0.5), Fraction(1, 2)],
            [-1.001, 1.001, math.nan, math.inf, False],
        ),
        (Range(float, 0, 1, is_open=True), [5e-324, 1], [0, 0.0, -0.0]),
        (Range(int, 1, 5, nullable=True), [None, 1], [0]),
        (Range(bool), [True, False], [0, 1, None]),
    ],
)
def test_bounds_are_included_but_where_they_are_open(allowed: Range, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        checked = allowed.check("option", value)
        assert checked is None if value is None else type(checked) is allowed.kind
        assert checked == value
    for value in refused:
        with pytest.raises(ConfigError, match="option="):
            allowed.check("option", value)


def test_plain_numbers_end_at_64_bits() -> None:
    for value in (MAX_INTEGER, -MAX_INTEGER, 1e300, "text", True, None):
        assert plain_number("option", value) is value
    for beyond in (MAX_INTEGER + 1, -MAX_INTEGER - 1, Fraction(10**400)):
        with pytest.raises(ConfigError, match="beyond 64 bits"):
            plain_number("option", beyond)
