"""PiX's options. No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from chansurg.recipes.pix.partition import FITTED, SUBSETS
from chansurg.surgery.recipe import bad_value, option

MODES = ("squeeze", "downscale")
OPERATORS = ("pick-or-mix", "pick", "mix", "min")
TAU = 0.5
LARGEST_ZETA = 2**16  # no layer has more channels

_bad = partial(bad_value, "pix")


@dataclass(frozen=True)
class PixOptions:
    """What a user can choose. Source: PiX, Sec. 3 and Tables 1, 3, 5."""

    mode: str = option(
        "squeeze",
        "squeeze: PiX replaces 1x1 convs that squeeze channels ahead of a spatial conv, and the second layer of feed-forward networks. "
        "downscale: PiX is put in front of spatial and pointwise convs, which shrink with it.",
        choices=MODES,
    )
    zeta: int | Literal["own"] | None = option(
        None,
        "The sampling factor. In squeeze mode 'own' (the default) keeps each site's width, and a number N scales every site by N over the "
        "network's most common ratio. In downscale mode it is the factor itself (default 2).",
        metavar="own|N",
    )
    operator: str = option(
        "pick-or-mix",
        "pick-or-mix: the maximum where the sampling probability is at most tau, else the mean. pick, mix: always the one. "
        "min: the minimum in place of the maximum.",
        choices=OPERATORS,
    )
    tau: float = option(TAU, "Threshold on the sampling probability between pick and mix, 0 to 1. pick and mix alone have none.")
    subsets: str | None = option(
        None,
        "Which channels share a subset: neighbours (contiguous), every K-th (strided), which is quicker on channels_last maps, or those "
        "that keep what reads them best supplied (fitted). The default is fitted with --calibrate, else contiguous.",
        choices=(*SUBSETS, FITTED),
    )

    def __post_init__(self) -> None:
        """Check the values; strings from a command line become numbers."""
        for name, choices in (("mode", MODES), ("operator", OPERATORS), ("subsets", (None, *SUBSETS, FITTED))):
            if getattr(self, name) not in choices:
                raise _bad(name, getattr(self, name), f"Choose one of: {', '.join(filter(None, choices))}.")
        zeta: object = self.zeta if self.zeta is not None else ("own" if self.mode == "squeeze" else 2)
        if isinstance(zeta, str) and zeta != "own":
            try:
                zeta = int(zeta)
            except ValueError:
                raise _bad("zeta", zeta, f"Pass a whole number from 1 to {LARGEST_ZETA}, or 'own' in squeeze mode.") from None
        if isinstance(zeta, bool) or not (zeta == "own" or (isinstance(zeta, int) and 1 <= zeta <= LARGEST_ZETA)):
            raise _bad("zeta", zeta, f"Pass a whole number from 1 to {LARGEST_ZETA}, or 'own' in squeeze mode.")
        if zeta == "own" and self.mode == "downscale":
            raise _bad("zeta", zeta, "In downscale mode pass the factor, a whole number of at least 1.")
        object.__setattr__(self, "zeta", zeta)
        try:
            tau = float(self.tau)
        except (TypeError, ValueError):
            raise _bad("tau", self.tau, "Pass a number between 0 and 1.") from None
        if not 0.0 <= tau <= 1.0:
            raise _bad("tau", self.tau, "Pass a number between 0 and 1.")
        if self.operator in ("pick", "mix") and tau != TAU:
            raise _bad(
                "tau", self.tau, f"The operator {self.operator!r} compares nothing with tau: leave --tau out, or choose pick-or-mix."
            )
        object.__setattr__(self, "tau", tau)
