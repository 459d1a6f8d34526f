"""Numbers in a JSON schema that the compiler keeps exactly: schema → schema, or one line that names what is refused.

llguidance reads every number as a double, writes constants with a double's shortest digits, turns the bounds of
integers into 64 bits and forgets some exclusive bounds. So bounds that it would blur move inward, each to the next
number that it holds: what it allows is then valid, and of what is valid only numbers within one step of a bound are
left out. Constants and divisors that it would change are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeGuard

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.json_schema import subschemas
from pocketvlm.ranges import show

_EXACT = 2**53  # up to here a double holds every integer
_BEYOND = 2**63  # the compiler's integers end below
_MAX_COEFFICIENT = 2**32 - 1  # of a divisor, its decimal point left out
# Stands for "above 0". The next double has 324 digits, too deep for the compiler.
_SMALLEST = 1e-30


def keep_numbers(schema: Any) -> Any:
    """Return a copy of `schema`, which is plain JSON, with bounds that are kept as they are written.

    Raises:
        ConfigError: a bound, a constant or a divisor that cannot be kept.
    """
    copy = json.loads(json.dumps(schema))
    divisors, may_meet = set[tuple[int, int]](), False
    for part in subschemas(copy):
        _keep_bounds(part)
        for value in _constants(part):
            _check_constant(value)
        if _is_number(part.get("multipleOf")):
            divisors.add(_coefficient(part["multipleOf"]))
        beside = len(part.keys() - {"$defs", "definitions", "title", "description", "$schema"})
        may_meet |= "allOf" in part or "patternProperties" in part
        may_meet |= beside > 1 and not part.keys().isdisjoint(("$ref", "anyOf", "oneOf"))
    if may_meet:
        _check_multiples(divisors)
    return copy


def _keep_bounds(part: dict[str, Any]) -> None:
    """Replace the bounds of `part` by inclusive ones that are doubles."""
    lower, upper = _bounds(part, "minimum", "exclusiveMinimum", 1), _bounds(part, "maximum", "exclusiveMaximum", -1)
    if lower and upper and lower[-1].read > upper[-1].read:
        low, high = lower[-1], upper[-1]
        if low.value < high.value or (low.value == high.value and not low.is_exclusive and not high.is_exclusive):
            raise ConfigError(
                f"no number between {low.key} {show(low.value)} and {high.key} {show(high.value)} can be "
                "told from these bounds",
                hint="Move them apart.",
            )
    for name, exclusive, found in (("minimum", "exclusiveMinimum", lower), ("maximum", "exclusiveMaximum", upper)):
        if found:
            written = found[-1].written
            part[name] = int(written) if written.is_integer() else written
            part.pop(exclusive, None)


class _Bound(NamedTuple):
    """A bound as it was given, and the inclusive one that takes its place: what to write, and what that is read as."""

    key: str
    value: float
    is_exclusive: bool
    read: float
    written: float


def _bounds(part: Mapping[str, Any], name: str, exclusive: str, sign: int) -> list[_Bound]:
    """Return the lower (`sign` 1) or upper (-1) bounds of `part`, the tightest last."""
    bound, beyond = part.get(name), part.get(exclusive)
    if beyond is True:  # as the fourth draft had it
        bound, beyond = None, bound
    given = ((name, bound, False), (exclusive, beyond, True))
    found = [
        _Bound(key, value, is_exclusive, *_inward(key, value, sign, is_exclusive))
        for key, value, is_exclusive in given
        if _is_number(value)
    ]
    return sorted(found, key=lambda bound: sign * bound.read)


def _inward(key: str, value: float, sign: int, is_exclusive: bool) -> tuple[float, float]:
    """Return the double nearest to a lower (`sign` 1) or upper (-1) bound that it allows, and what to write for it."""
    if not abs(value) <= _BEYOND:
        raise ConfigError(f"{key} {show(value)} is beyond 64 bits", hint="Leave it out, or use a string.")
    # Up to 2**53 a number is the double that it is read as; beyond, shortest digits may be another number's.
    limit = Decimal(value) if abs(value) <= _EXACT else max(_readings(value), key=lambda reading: sign * reading)
    bound = float(value) if value or not is_exclusive else sign * _SMALLEST
    while True:
        read = bound if bound.is_integer() else _as_read(bound)  # an integer is written as one, and read exactly
        inside = (Decimal(read),) if abs(read) <= _EXACT else _readings(read)
        if all(sign * (reading - limit) > 0 or (reading == limit and not is_exclusive) for reading in inside):
            break
        bound = math.nextafter(bound, sign * math.inf)
    if abs(read) >= _BEYOND:
        raise ConfigError(f"{key} {show(value)} leaves no number of 64 bits", hint="Leave it out, or use a string.")
    return read, bound


def _as_read(value: float) -> float:
    """Return what the compiler reads where a double is written: it rounds the digits and the power of ten singly."""
    _, digits, exponent = Decimal(repr(abs(value))).as_tuple()
    read, places = float(int("".join(map(str, digits)))), int(exponent)
    while places < -308:
        read, places = read / 1e308, places + 308
    return math.copysign(read / float(f"1e{-places}") if places < 0 else read * float(f"1e{places}"), value)


def _readings(value: float) -> tuple[Decimal, Decimal]:
    """Return a number as it is held, and as it is written."""
    return Decimal(value), Decimal(repr(value))


def _constants(part: dict[str, Any]) -> Iterator[float]:
    """Yield the numbers anywhere in `const` and `enum`."""
    waiting = [part[key] for key in ("const", "enum") if key in part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif _is_number(value):
            yield value


def _check_constant(value: float) -> None:
    is_kept = abs(value) <= _EXACT or (abs(value) < _BEYOND and len({Decimal(float(value)), *_readings(value)}) == 1)
    is_kept = is_kept and (isinstance(value, int) or _as_read(value) == value)
    if not is_kept:
        raise ConfigError(
            f"the constant {show(value)} has more digits than can be kept",
            hint=f"Whole numbers are kept up to {_EXACT}, others to 15 digits; use a string.",
        )


def _coefficient(divisor: float) -> tuple[int, int]:
    """Return the divisor as digits and decimal places, by the steps that the compiler takes."""
    value, places = float(min(abs(divisor), _BEYOND)), 0
    while value % 1 and value <= _MAX_COEFFICIENT:
        value, places = value * 10, places + 1
    digits = int(value) if value <= _MAX_COEFFICIENT else 0
    if Decimal(digits).scaleb(-places) != abs(Decimal(repr(divisor))):
        raise ConfigError(
            f"multipleOf {show(divisor)} cannot be kept",
            hint="Use a divisor of few digits, such as 5, 0.5 or 0.01.",
        )
    return digits, places


def _check_multiples(divisors: set[tuple[int, int]]) -> None:
    """Refuse divisors that overflow together: the compiler multiplies those of one number, in 32 bits."""
    places = max((places for _, places in divisors), default=0)
    if math.prod(digits * 10 ** (places - own) for digits, own in divisors) > _MAX_COEFFICIENT:
        raise ConfigError("its multipleOf are too many or too large together", hint="Keep one of them.")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
