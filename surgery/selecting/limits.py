"""What a user allows a conversion to cost, and asks it to save. No torch is imported here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from chansurg.surgery.errors import InputError
from chansurg.surgery.recipe import flag


@dataclass(frozen=True)
class Limits:
    """Bounds on where a recipe is applied; ``None`` for what does not matter.

    Args:
        max_blocks: at most so many sites are converted.
        target_macs: multiply-accumulates, as a share of those of the network before anything was ever done to it, above 0 and below 1:
            as few sites as reach it are converted.
        keep_drift: relative error of the outputs, 0 or more: as many sites as stay within it are converted, or, with ``target_macs``, the
            result has to stay within it.

    Raises:
        InputError: for a number out of range.
    """

    max_blocks: int | None = None
    target_macs: float | None = None
    keep_drift: float | None = None

    def __post_init__(self) -> None:
        for name in ("target_macs", "keep_drift"):
            if not isinstance(getattr(self, name), float | int | None) or isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "Pass a number.")
        if self.max_blocks is not None and (type(self.max_blocks) is not int or self.max_blocks < 1):
            raise _bad("max_blocks", self.max_blocks, "Pass a whole number of at least 1.")
        if self.target_macs is not None and not 0 < self.target_macs < 1:
            raise _bad("target_macs", self.target_macs, "Pass a share above 0 and below 1: 0.75 leaves three quarters.")
        if self.keep_drift is not None and not (self.keep_drift >= 0 and math.isfinite(self.keep_drift)):
            raise _bad("keep_drift", self.keep_drift, "Pass a relative error of the outputs, 0 or more: 0.1 is a tenth.")

    @property
    def given(self) -> dict[str, Any]:
        """Those that were asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __bool__(self) -> bool:
        return bool(self.given)


def _bad(name: str, value: object, to_do: str) -> InputError:
    return InputError(
        f"{value!r:.80} is not a value of {flag(name)}.", where=f"option {flag(name)}", not_done="Nothing was converted.", to_do=to_do
    )
