"""What each site of a recipe takes on this machine, before and after. Plain data; no torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chansurg.surgery.errors import InputError

RUNTIMES = ("eager", "compile", "onnxruntime", "aoti")


@dataclass(frozen=True)
class Where:
    """What sites are timed in.

    Args:
        runtime: one of ``RUNTIMES``; both forms go through :func:`chansurg.optimize` for it.
        batch_size: images.

    Raises:
        InputError: for another runtime, or no image.
    """

    runtime: str = "eager"
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise _bad("--runtime", self.runtime, f"Choose one of {', '.join(RUNTIMES)}.")
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise _bad("--batch-size", self.batch_size, "Pass a whole number of at least 1.")


@dataclass(frozen=True)
class TimedSite:
    """One site, timed by itself or with the module around it.

    Args:
        path: of the site.
        module: what was timed: the smallest modules around it, or in it, that take and give the same shapes before and after.
        before_ms: median milliseconds of the original's form; ``None`` where none were taken.
        after_ms: of the recipe's.
        faster: whether the recipe's form is the quicker one for sure: with 95 % confidence.
        reason: why it is converted, or left as it is.
    """

    path: str
    module: str
    before_ms: float | None
    after_ms: float | None
    faster: bool
    reason: str

    @property
    def told(self) -> str:
        """The path, with the milliseconds where there are some."""
        known = self.before_ms is not None and self.after_ms is not None
        return f"{self.path} ({self.before_ms:.3f} -> {self.after_ms:.3f} ms)" if known else self.path

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Timing:
    """All sites of a recipe, timed.

    Args:
        where: what they were timed in.
        threads: that computed.
        machine: what it ran on, as ``bench --json`` has it.
        sites: in the network's order.
    """

    where: Where
    threads: int
    machine: Mapping[str, Any]
    sites: tuple[TimedSite, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **vars(self.where),
            "threads": self.threads,
            "machine": dict(self.machine),
            "sites": [site.as_json() for site in self.sites],
        }


def _bad(option: str, value: object, to_do: str) -> InputError:
    return InputError(
        f"{value!r:.80} is not a value of {option}.", where=f"option {option}", not_done="Nothing was converted.", to_do=to_do
    )
