"""PCS's options. No torch is imported here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from chansurg.surgery.recipe import bad_value, option

SELECTIONS = ("running", "input")
METHODS = ("shrinking", "truncation")
PRESETS = {"A": 4e-6, "B": 6e-6, "C": 8e-6}
"""The shrinking rates of PCS-A, PCS-B and PCS-C (PCS, Section IV)."""

_bad = partial(bad_value, "pcs")


@dataclass(frozen=True)
class PcsOptions:
    """What a user can choose. Source: PCS, Section IV and Tables III, IV, VI, VII."""

    shrink: str = option(
        "1/2",
        "Which share of each layer's channels may go, from 0 up to but not including 1. 0 adds the salience alone.",
        metavar="FRACTION",
    )
    lambda_base: float | str | None = option(
        None,
        "The shrinking rate that training works up to: a number, or A, B (the default), C for the paper's 4e-6, 6e-6, 8e-6.",
        metavar="A|B|C|N",
    )
    alpha: float = option(0.1, "How much of the running salience each step replaces, above 0 and up to 1.", metavar="N")
    selection: str = option(
        "running",
        "running: the channels with the lowest running salience shrink, the same for all images. input: in each image those with its "
        "lowest salience, which leaves few channels that are dead for all.",
        choices=SELECTIONS,
    )
    method: str = option(
        "shrinking",
        "shrinking: a loss lowers the salience of the selected channels progressively. truncation: it is set to zero at once.",
        choices=METHODS,
    )
    closing: float = option(
        0.25,
        "The last share of a training run, from 0 up to but not including 1, in which nothing shrinks any more and what is dead is masked.",
        metavar="N",
    )

    def __post_init__(self) -> None:
        """Check the values; strings from a command line become numbers."""
        for name, choices in (("selection", SELECTIONS), ("method", METHODS)):
            if getattr(self, name) not in choices:
                raise _bad(name, getattr(self, name), f"Choose one of: {', '.join(choices)}.")
        try:
            shrink = Fraction(self.shrink).limit_denominator(2**16)
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            raise _bad("shrink", self.shrink, "Pass a fraction such as 1/2, or a number such as 0.4.") from None
        if not 0 <= shrink < 1:
            raise _bad("shrink", self.shrink, "Pass a fraction from 0 up to, but not including, 1: some channels have to stay.")
        object.__setattr__(self, "shrink", str(shrink))
        if self.method == "truncation" and self.lambda_base is not None and self.lambda_base != PRESETS["B"]:
            raise _bad("lambda_base", self.lambda_base, "Truncation has no shrinking rate: leave --lambda-base out, or choose shrinking.")
        given = "B" if self.lambda_base is None else self.lambda_base
        rate = PRESETS.get(given, given) if isinstance(given, str) else given
        self._number("lambda_base", rate, "Pass a number of at least 0, or A, B or C.", lambda value: value >= 0)
        self._number("alpha", self.alpha, "Pass a number above 0 and up to 1.", lambda value: 0 < value <= 1)
        self._number("closing", self.closing, "Pass a number from 0 up to, but not including, 1.", lambda value: 0 <= value < 1)

    def _number(self, name: str, value: object, to_do: str, fits: Callable[[float], bool]) -> None:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise _bad(name, getattr(self, name), to_do) from None
        if isinstance(value, bool) or not math.isfinite(number) or not fits(number):
            raise _bad(name, getattr(self, name), to_do)
        object.__setattr__(self, name, number)
