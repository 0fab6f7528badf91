"""What a number must be where it enters: a number, finite, in its range. Links bring what no widget would let in."""

import math
import sys
from typing import Any

LARGEST = sys.float_info.max


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf):
    """Raises ValueError, a sentence that names the input, unless the value is a finite number in [low, high]."""
    if not (is_number(value) and low <= value <= high and abs(value) <= LARGEST):  # NaN is in no range
        raise ValueError(f"{name} is {shown(value)}: give a number{_range(low, high)}.")


def check_integer(name: str, value: Any, low: float = -math.inf, high: float = math.inf):
    """Raises ValueError, a sentence that names the input, unless the value is a whole number in [low, high]."""
    if not (is_number(value) and isinstance(value, int) and low <= value <= high):
        raise ValueError(f"{name} is {shown(value)}: give a whole number{_range(low, high)}.")


def is_number(value: Any) -> bool:
    """Whether it is one of Python's numbers, NaN and the infinite ones among them; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(low: float, high: float) -> str:
    if high != math.inf:
        return f" from {_plain(low)} to {_plain(high)}"
    return "" if low == -math.inf else f", {_plain(low)} or more"


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def shown(value: Any) -> str:
    """A value as a sentence names it, short."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        text = "a number of thousands of digits"
    return shorten(text, 40)


def shorten(text: str, most: int) -> str:
    """The text, or its beginning and three dots where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
