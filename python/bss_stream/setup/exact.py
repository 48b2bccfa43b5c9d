"""Decimal text into whole units, exactly: no binary float on the way."""

import re
from fractions import Fraction
from typing import Final

INTEGER_DIGITS_MAX: Final = 12
DECIMALS_MAX: Final = 6
"""Together they keep any quantity in its smallest unit inside a signed 64-bit integer."""

_DECIMAL = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?")


def fraction(text: str) -> Fraction:
    """The exact value of decimal text such as "1500.00". Raises ValueError."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError('expected a plain decimal such as "1500.00"')
    _, whole, decimals = match.groups(default="")
    if len(whole) > INTEGER_DIGITS_MAX:
        raise ValueError(f"expected at most {INTEGER_DIGITS_MAX} digits before the point")
    if len(decimals) > DECIMALS_MAX:
        raise ValueError(f"expected at most {DECIMALS_MAX} decimals")
    return Fraction(text)


def units(text: str, digits: int) -> int:
    """Decimal text as a whole number of 10**-digits. Raises ValueError.

    Written decimals count even when they are zeros: "1500.00" of a currency without decimals
    tells that the writer had another currency in mind.
    """
    value = fraction(text)
    written = len(text.partition(".")[2])
    if written > digits:
        raise ValueError(f"has {written} decimals, expected at most {digits}")
    return int(value * 10**digits)


def text(number: int, digits: int) -> str:
    """The inverse of `units`: `number` of 10**-digits as decimal text."""
    if digits == 0:
        return str(number)
    whole, part = divmod(abs(number), 10**digits)
    return f"{'-' if number < 0 else ''}{whole}.{part:0{digits}d}"
