"""Pictures as inline SVG: shapes whose colours come from the page's style, so that one picture serves light and dark.

Every picture carries its title and what it shows as text for those who do not see it, and every mark may carry a note that a browser shows
where one points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_LEAST = 430.0
"""Narrower than that, pixels, a wider picture scrolls: its words could not be read."""


class Drawing:
    """A picture, in pixels from the top left.

    Args:
        width: of the picture.
        height: of the picture.
        title: what it is.
        described: what it shows, in a sentence or two.
        scrolls: keep the width in narrow windows, and let the reader scroll; else the picture shrinks with the window.
    """

    def __init__(self, width: float, height: float, *, title: str, described: str, scrolls: bool = False) -> None:
        self.width, self.height = width, height
        self._title, self._described, self._scrolls = title, described, scrolls
        self._parts: list[str] = []

    def bar(self, x: float, y: float, width: float, height: float, look: str, note: str = "") -> None:
        """A rectangle; one of negative width or height reaches the other way."""
        x, width = min(x, x + width), abs(width)
        y, height = min(y, y + height), abs(height)
        self._add("rect", look, note, x=x, y=y, width=width, height=height, rx=min(2.0, width / 2, height / 2))

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str, note: str = "") -> None:
        """A straight line."""
        self._add("line", look, note, x1=x1, y1=y1, x2=x2, y2=y2)

    def dot(self, x: float, y: float, look: str, note: str = "", radius: float = 4.0) -> None:
        """A filled circle."""
        self._add("circle", look, note, cx=x, cy=y, r=radius)

    def path(self, points: Sequence[tuple[float, float]], look: str) -> None:
        """Straight lines from point to point."""
        told = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._parts.append(f'<polyline class="{look}" points="{told}"/>')

    def text(self, x: float, y: float, words: str, look: str = "", anchor: str = "start") -> None:
        """A line of text with its baseline at ``y``; ``anchor`` is ``start``, ``middle`` or ``end``."""
        self._parts.append(f'<text class="{look}" x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}">{escape(words)}</text>')

    def rendered(self) -> str:
        """The picture as text, to be put into a page."""
        size = f'viewBox="0 0 {_number(self.width)} {_number(self.height)}"'
        style = (
            f"width:{_number(self.width)}px"
            if self._scrolls
            else f"width:100%;min-width:{_number(min(self.width, _LEAST))}px;max-width:{_number(self.width)}px"
        )
        label = escape(f"{self._title}. {self._described}", quote=True)
        picture = f'<svg {size} style="{style}" role="img" aria-label="{label}">{"".join(self._parts)}</svg>'
        # What scrolls has to be reachable from the keyboard.
        return (
            f'<div class="wide" tabindex="0" role="group" aria-label="{escape(self._title, quote=True)}">{picture}</div>'
            if self._scrolls
            else picture
        )

    def _add(self, shape: str, look: str, note: str, **numbers: float) -> None:
        told = " ".join(f'{name}="{_number(value)}"' for name, value in numbers.items())
        self._parts.append(f'<{shape} class="{look}" {told}>{f"<title>{escape(note)}</title>" if note else ""}</{shape}>')


def steps(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers for an axis, about ``count`` of them, from at most ``low`` to at least ``high``."""
    if not high > low:
        high = low + 1
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 10) for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
