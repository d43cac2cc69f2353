"""SlimConv's options. No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from chansurg.surgery.recipe import bad_value, option

WEIGHTS = ("both", "plain", "flipped", "shuffled")
PATHS = (2, 3)
RATIO = 32
LARGEST = 2**16  # no layer has more channels

_bad = partial(bad_value, "slimconv")


@dataclass(frozen=True)
class SlimConvOptions:
    """What a user can choose. Source: SlimConv, Sec. III-A to III-C, IV-D and Tables I, III, X, XI."""

    k: str = option(
        "4/3",
        "By how much each replaced convolution's output shrinks: 4/3 folds the channels in 2, 2 in 3, 8/3 in 4, and 2m/3 in m. "
        "m must divide the channels.",
        metavar="FRACTION",
    )
    floor: int = option(
        1, f"The attention has a hidden channel for every {RATIO} of the input's channels, and at least this many.", metavar="N"
    )
    weights: str = option(
        "both",
        "both: the top path takes the channel weights as they are, the bottom path in reverse order. plain: both paths as they are. "
        "flipped: both in reverse order. shuffled: the bottom path interleaved instead of reversed.",
        choices=WEIGHTS,
    )
    paths: int = option(2, "3 adds a path like the bottom one, on interleaved weights.", metavar="2|3")

    def __post_init__(self) -> None:
        """Check the values; strings from a command line become numbers."""
        if self.weights not in WEIGHTS:
            raise _bad("weights", self.weights, f"Choose one of: {', '.join(WEIGHTS)}.")
        try:
            k = Fraction(self.k).limit_denominator(LARGEST)
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            raise _bad("k", self.k, _K_TO_DO) from None
        folds = k * Fraction(3, 2)
        if folds.denominator != 1 or not 2 <= folds <= LARGEST:
            raise _bad("k", self.k, _K_TO_DO)
        object.__setattr__(self, "k", str(k))
        self._whole("floor", "Pass a whole number of at least 1; 24 gives the paper's MobileNetV2.", range(1, LARGEST + 1))
        self._whole("paths", "Pass 2 or 3.", PATHS)

    @property
    def folds(self) -> int:
        """``m``: how many channels become one; ``k`` is ``2m/3``."""
        return int(Fraction(self.k) * 3 / 2)

    def _whole(self, name: str, to_do: str, within: range | tuple[int, ...]) -> None:
        given = getattr(self, name)
        try:
            number = given if isinstance(given, int) else int(str(given))
        except ValueError:
            raise _bad(name, given, to_do) from None
        if isinstance(given, bool) or number not in within:
            raise _bad(name, given, to_do)
        object.__setattr__(self, name, number)


_K_TO_DO = "Pass 4/3, 2, 8/3, or another number 2m/3 with a whole m of at least 2."
