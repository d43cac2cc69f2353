"""How far a converted network has drifted from the one it came from: the figures, and how they are told. No torch is imported here.

:mod:`chansurg.surgery.drifting` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chansurg.surgery.edits.json_values import items, number, text, whole

NOISE = "normal noise"
IMAGES = "images"
HELD_OUT = "held-out images"


def ran_on(kind: str, inputs: int) -> str:
    """``64 held-out images``, ``1 input of normal noise``."""
    plural = "" if inputs == 1 else "s"
    return f"{inputs} input{plural} of {NOISE}" if kind == NOISE else f"{inputs} {kind.removesuffix('s')}{plural}"


@dataclass(frozen=True)
class Drift:
    """How far two networks are apart.

    Args:
        kind: what they ran on: :data:`NOISE`, :data:`IMAGES`, or :data:`HELD_OUT`, which nothing was fitted on.
        inputs: how many.
        blocks: path -> relative error of what the block puts out, in the order in which the original runs them; those that both networks
            run equally often, with outputs of one shape.
        outputs: relative error of the outputs; ``None`` where they cannot be compared, or infinite.
        agreement: share of inputs, 0 to 1, for which the largest output is the same one; ``None`` where outputs are not ``[B, classes]``.
        reason: why nothing was measured, where that is so.
    """

    kind: str
    inputs: int
    blocks: Mapping[str, float | None] = field(default_factory=dict)
    outputs: float | None = None
    agreement: float | None = None
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values; an error that is not finite is null."""
        return {
            "kind": self.kind,
            "inputs": self.inputs,
            "blocks": [{"path": path, "relative_error": error} for path, error in self.blocks.items()],
            "outputs": self.outputs,
            "agreement": self.agreement,
            "reason": self.reason,
        }


def drift_of(results: Mapping[str, Any]) -> Drift | None:
    """The drift that a journal entry's results tell of; ``None`` where they tell of none, or in a form that is not known here."""
    data = results.get("drift")
    try:
        return (
            None
            if data is None
            else Drift(
                kind=text(data["kind"]),
                inputs=whole(data["inputs"]),
                blocks={text(block["path"]): _number(block["relative_error"]) for block in items(data["blocks"])},
                outputs=_number(data["outputs"]),
                agreement=_number(data["agreement"]),
                reason=None if data["reason"] is None else text(data["reason"]),
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError):  # a file may hold anything there
        return None


def _number(value: Any) -> float | None:
    return None if value is None else number(value)
