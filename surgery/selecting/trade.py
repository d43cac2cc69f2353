"""Where to cut, as it was decided: what each site costs and saves, and which were taken. Plain data; no torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trade:
    """One site, tried alone.

    Args:
        path: of the site.
        macs_saved: multiply-accumulates that converting it alone saves; below zero where it costs some.
        drift: relative error of the network's outputs with it alone; ``None`` where that is not finite.
        taken: whether it is converted.
        reason: why, or why not.
    """

    path: str
    macs_saved: int
    drift: float | None
    taken: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Choice:
    """Where a conversion cuts.

    Args:
        asked: what was asked for: the limits that were given.
        kind: what the networks ran on (see :class:`chansurg.surgery.drift.Drift`).
        inputs: on how many.
        calibrated: whether each trial was calibrated.
        sites: every site, in the order in which they are taken.
        macs: share of the original's multiply-accumulates that the chosen sites together leave.
        drift: relative error of the outputs with all of them; ``None`` where that is not finite.
    """

    asked: Mapping[str, Any]
    kind: str
    inputs: int
    calibrated: bool
    sites: tuple[Trade, ...]
    macs: float
    drift: float | None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "asked": dict(self.asked), "sites": [site.as_json() for site in self.sites]}
