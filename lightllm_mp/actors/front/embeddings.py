"""Rows of numbers as a client gets them."""

from __future__ import annotations

import math
from array import array


def shortened(row: bytes, length: int | None) -> array[float]:
    """The numbers of a float32 column; with `length` its first ones, divided by their Euclidean length."""
    numbers = array("f", row)
    if length is None or length == len(numbers):
        return numbers
    del numbers[length:]
    norm = math.sqrt(math.fsum(x * x for x in numbers)) or 1.0
    return array("f", [x / norm for x in numbers])


def shown_score(number: float, *, raw: bool) -> float:
    """The sigmoid of a model's number, or (`raw`) the number."""
    if raw:
        return number
    return 1.0 / (1.0 + math.exp(-number)) if number >= 0 else math.exp(number) / (1.0 + math.exp(number))
