"""What an option may be: one `Range` for each, in one table for each kind of options, checked in one way.

Numbers of numpy count as numbers, True and False do not. Nothing is clamped or wrapped around: what does not fit is
refused in one line. Tests walk the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from pocketvlm.errors import ConfigError

MAX_INTEGER = 2**63 - 1  # of 64 bits, as JSON, tensors and other programs hold them


@dataclass(frozen=True)
class Range:
    """The values of one option.

    Attributes:
        kind: bool, int, or float, where whole numbers will do.
        min, max: both included, but for `is_open`: above `min`. Without meaning for bool.
        nullable: None is allowed.
    """

    kind: type[bool] | type[int] | type[float]
    min: float = 0
    max: float = MAX_INTEGER
    nullable: bool = False
    is_open: bool = False

    def check(self, name: str, value: Any) -> Any:
        """`value` as Python's own `kind`, or None; `ConfigError` where it is not in the range."""
        if value is None and self.nullable:
            return None
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            raise ConfigError(f"{name}={show(value)} is neither True nor False")
        is_number = isinstance(value, Integral if self.kind is int else Real) and not isinstance(value, bool)
        # Compared the right way round, NaN fails too.
        if not is_number or not self.min <= value <= self.max or (self.is_open and value == self.min):
            wanted = f"not possible: it must be {self.min}" if self.min == self.max else f"not {self}"
            raise ConfigError(f"{name}={show(value)} is {wanted}")
        return self.kind(value)

    def __str__(self) -> str:
        low, high = (f"{bound:.15g}" if self.kind is float else str(bound) for bound in (self.min, self.max))
        if self.kind is float:
            return f"a number {'above' if self.is_open else 'from'} {low} to {high}"
        return (
            f"an integer of at least {low}, in 64 bits" if self.max == MAX_INTEGER else f"an integer of {low} to {high}"
        )


def check_all(ranges: Mapping[str, Range], options: object) -> None:
    """Check the attributes of a frozen dataclass, and leave Python's own numbers in their place."""
    for name, allowed in ranges.items():
        object.__setattr__(options, name, allowed.check(name, getattr(options, name)))


def plain_number(name: str, value: Any) -> Any:
    """`value` as Python's own number if it is one of another library; `ConfigError` for an integer beyond 64 bits."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        number = int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction of huge integers
        raise ConfigError(f"{name}={show(value)} is beyond 64 bits") from None
    if isinstance(number, float):
        return number
    if not -MAX_INTEGER <= number <= MAX_INTEGER:
        raise ConfigError(f"{name}={show(value)} is beyond 64 bits")
    return number


def as_integer(value: Any) -> Any:
    """A whole number that a file writes with a point (24.0) as the integer it means; everything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def show(value: object, length: int = 40) -> str:
    """`value` for an error message: the beginning of its `repr`, or its type where it has none."""
    try:
        return f"{value!r:.{length}}"
    except Exception:  # integers of thousands of digits, and whatever else objects do there
        return f"a value of type {type(value).__name__}"


def show_json(value: object) -> str:
    """A value of a body in JSON for an error message, in at most 60 characters of ASCII.

    A string or a number as Python writes it, of all else the type: an object that stands for a list or a mapping may be
    anyone's, and its `repr` is not called.
    """
    if value is None:
        return "missing"
    if isinstance(value, int) and not -(10**60) < value < 10**60:
        return "an integer of more than 60 digits"  # writing it could take seconds, or be refused
    if isinstance(value, str):
        value = value[:60]
    text = ascii(value) if isinstance(value, str | int | float) else f"of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
