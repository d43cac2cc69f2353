"""Values of JSON, read with a check of what they are: a file may hold anything."""

from __future__ import annotations

from typing import Any


def text(value: Any) -> str:
    """A text.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a text")
    return value


def items(values: Any) -> list[Any]:
    """A list.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.80} is not a list")
    return values


def texts(values: Any) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        TypeError: for anything else.
    """
    return tuple(text(value) for value in items(values))


def whole(value: Any) -> int:
    """A whole number from 0.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r:.80} is not a count")
    return value


def indices(values: Any) -> tuple[int, ...] | None:
    """A list of whole numbers from 0, or ``None``.

    Raises:
        TypeError: for anything else.
    """
    return None if values is None else tuple(whole(i) for i in items(values))


def number(value: Any) -> float:
    """A number.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{value!r:.80} is not a number")
    return float(value)
