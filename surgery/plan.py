"""What a recipe would do to a network: plain data, nothing has changed yet. No torch is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chansurg.surgery.edits import Edit
from chansurg.surgery.selecting.timed import Timing
from chansurg.surgery.selecting.trade import Choice


@dataclass(frozen=True)
class Site:
    """A place where a recipe applies.

    Args:
        path: path of the module that the recipe changes there.
        kind: the recipe's own word for the sort of place (``squeeze``, ``feed-forward``, …).
        detail: numbers and notes that help a reader: channels, ratio, what follows. JSON values.
    """

    path: str
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """``{"path", "kind", …detail}``."""
        return {"path": self.path, "kind": self.kind, **self.detail}


@dataclass(frozen=True)
class Skip:
    """A place that looked like a site, or might be expected to be one, and the reason why it is left alone."""

    path: str
    reason: str

    def as_json(self) -> dict[str, str]:
        """``{"path", "reason"}``."""
        return {"path": self.path, "reason": self.reason}


@dataclass(frozen=True)
class Chosen:
    """Which of a recipe's sites may be converted.

    Args:
        paths: of the sites that may; ``None`` for every one that the recipe finds.
        reasons: for other sites, by path, why they stay as they are.
    """

    paths: frozenset[str] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def reason_against(self, path: str) -> str | None:
        """Why the site at ``path`` stays as it is, or ``None``."""
        if self.paths is None or path in self.paths:
            return None
        return self.reasons.get(path, "it was not chosen")


EVERY = Chosen()
"""Every site."""


@dataclass(frozen=True)
class Plan:
    """The edits of one conversion, and the sites left alone.

    Args:
        recipe: the recipe's name.
        version: the recipe's version.
        options: every option's value, defaults included, as JSON values.
        sites: where it applies.
        edits: what is done, in order.
        skipped: where it does not apply, and why.
        signatures: for each module whose forward is rewritten, the arguments that are not tensors, and their values in this network.
        landmarks: paths of the network's blocks, at whose outputs the drift is measured.
        asked: what else than the recipe's options decided where it applies: patterns, limits. JSON values.
        choice: how it was decided where to cut, where limits were given.
        timing: what its sites take, where only those that gain were to be converted.
    """

    recipe: str
    version: int
    options: Mapping[str, Any]
    sites: tuple[Site, ...]
    edits: tuple[Edit, ...]
    skipped: tuple[Skip, ...] = ()
    signatures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    landmarks: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    choice: Choice | None = None
    timing: Timing | None = None

    def as_json(self) -> dict[str, Any]:
        """The plan as ``convert --dry-run --json`` shows it."""
        return {
            "recipe": self.recipe,
            "options": dict(self.options),
            "sites": [site.as_json() for site in self.sites],
            "edits": [edit.as_json() for edit in self.edits],
            "skipped": [skip.as_json() for skip in self.skipped],
            "choice": None if self.choice is None else self.choice.as_json(),
            "timing": None if self.timing is None else self.timing.as_json(),
        }
