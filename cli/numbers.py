"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from chansurg.cli.reporting import grid

COUNT_NAMES = {"params": "parameters", "macs": "MACs", "ops": "ops", "memory_access": "memory access"}


def large(number: int) -> str:
    """``25.56 M``, ``4.09 G``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}" if number >= 1e3 * size else f"{number / size:#.4g} {unit}"
    return str(number)


def counted(number: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def difference(value: float | None) -> str:
    """How far apart two numbers are, in three digits; documents have ``None`` where that is infinite or cannot be told."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.3g}"


def relative_error(value: float | None) -> str:
    """A relative error, so that several stand well under one another: ``0.790``, ``2.1e-06``, ``0``; documents have ``None`` for what
    is not finite or cannot be compared."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.3f}" if value >= 0.0005 else f"{value:.1e}"


def counts_table(before: Mapping[str, int], after: Mapping[str, int] | None = None, *, original: Mapping[str, int] | None = None) -> Table:
    """The four counts; with ``after`` also what they became, and the ratio; with ``original`` also what they were at the very first."""
    if after is None:
        table = grid("", ">", ">")
        for key, name in COUNT_NAMES.items():
            table.add_row(name, large(before[key]), f"{before[key]:,}")
        return table
    first = [] if original is None else [original]
    headings = [[">original"], [">after / original"]] if first else [[], []]
    table = grid("", *headings[0], ">before", ">after", ">after / before", *headings[1])
    for key, name in COUNT_NAMES.items():
        if key not in before or key not in after:
            continue
        earlier = [large(counts[key]) if key in counts else "-" for counts in first]
        ratios = [f"{after[key] / counts[key]:.3f}" if counts.get(key) else "-" for counts in (before, *first)]
        table.add_row(name, *earlier, large(before[key]), large(after[key]), *ratios)
    return table


def broke_off(uncounted: Sequence[str]) -> str | None:
    """What to say under counts whose pass broke off, so that they cover a part of the network only."""
    stops = [note for note in uncounted if note.startswith("stopped at")]
    return f"counted in part: {'; '.join(stops)}" if stops else None
