"""The learning rate as a pure function of the step: nothing to save in a checkpoint, nothing to get out of step with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer

from chansurg.surgery.errors import InputError

SCHEDULES = ("cosine", "step")


def learning_rate(
    step: int,
    *,
    steps: int,
    peak: float,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    floor: float = 0.0,
) -> float:
    """The learning rate of one optimizer step.

    It rises linearly over the warm-up (Goyal et al., "Accurate, Large Minibatch SGD", section 2.2) and is ``peak`` at the first step after
    it. Then ``cosine`` follows half a cosine (Loshchilov and Hutter, "SGDR", equation 5) that would arrive at ``floor`` after the last
    step; ``step`` is multiplied by ``gamma`` at every milestone and never falls below ``floor``.

    Args:
        step: counted from 0 to ``steps - 1``.
        steps: optimizer steps of the whole run.
        peak: the highest rate.
        schedule: ``cosine`` or ``step``.
        warmup_steps: steps before the peak.
        milestones: for ``step``: the steps from which on the rate is lower, warm-up counted.
        gamma: for ``step``: the factor at each milestone.
        floor: the lowest rate after the warm-up.

    Raises:
        InputError: where there is no such schedule, or the warm-up leaves no step.
    """
    if schedule not in SCHEDULES:
        raise InputError(
            f"There is no schedule {schedule!r}.",
            where="option --schedule",
            not_done="Nothing was trained.",
            to_do=f"Choose one of: {', '.join(SCHEDULES)}.",
        )
    if not 0 <= warmup_steps < max(steps, 1):
        raise InputError(
            f"A warm-up of {warmup_steps} steps does not fit into a run of {steps} steps.",
            where="option --warmup-epochs",
            not_done="Nothing was trained.",
            to_do="Make the warm-up shorter or the run longer.",
        )
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "step":
        return max(floor, peak * gamma ** sum(1 for milestone in milestones if step >= milestone))
    done = (step - warmup_steps) / (steps - warmup_steps)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimizer: Optimizer, rate: float, *, only_new: bool = False) -> None:
    """Give every group of the optimizer this learning rate; with ``only_new``, zero to those that are not of new layers."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if only_new and not group["new"] else rate
