"""How measured numbers read, on a terminal and in the report alike."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["spread_text", "value_text"]


def value_text(value: float | str | None, unit: str = "") -> str:
    """A number with its unit, to four significant digits or to the nearest whole; a text as it is;
    a dash for none.

    >>> value_text(0.123456, "bits"), value_text(34244.0932, "ms")
    ('0.1235 bits', '34 244 ms')
    >>> value_text(14.5, "%"), value_text(None)
    ('14.5 %', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    return f"{_number(value)} {unit}".strip()


def spread_text(spread: float | Sequence[float | None] | None) -> str:
    """The uncertainty that follows a value: a half-width, or an interval.

    >>> spread_text(0.0123), spread_text((0.1, 0.25)), spread_text(None)
    ('± 0.012', '[0.1, 0.25]', '')
    """
    if spread is None:
        return ""
    if isinstance(spread, int | float):
        return f"± {spread:.2g}"
    low, high = spread
    return f"[{value_text(low)}, {value_text(high)}]"


def _number(value: float) -> str:
    if abs(value) < 1e7 and (float(value).is_integer() or abs(value) >= 1e4):
        return f"{round(value):,}".replace(",", " ")
    return f"{value:.4g}"
