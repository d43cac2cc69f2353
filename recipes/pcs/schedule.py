"""When a training run shrinks, when it watches, and when it masks. No torch is imported here.

====================== ==========================================================================================================
shrinking              until ``1 - closing`` of the run: the shrinking loss is paid, at a rate that grows with the square of time
watching               the last pass over the data before that: which entries are zero for every image?
closing                the rest: what was seen dead is masked, and each further pass is watched for more; the last one ends with the run
====================== ==========================================================================================================
"""

from __future__ import annotations

PAPER_STEPS = 300_000
"""Shrinking steps of the paper: 60 epochs of ImageNet in batches of 256 (PCS, Section IV)."""
UNKNOWN_PASS = 0.05
"""The share of a run taken for one pass over the data where nobody says."""
_ROUNDING = 1e-9
NOT_WATCHING = -1


def is_closing(closing: float, progress: float) -> bool:
    """Whether the shrinking part is over."""
    return progress > 1 - closing - _ROUNDING


def shrinking_rate(lambda_base: float, closing: float, progress: float, steps: int | None) -> float:
    """The weight of the shrinking loss: ``lambda_base * (T / T_max)^2`` (PCS, Section IV), zero in the closing part.

    Args:
        lambda_base: the rate at the end of the shrinking part, for the paper's number of steps.
        closing: the share of the run that the closing part takes.
        progress: how much of the run is done, from 0 to 1.
        steps: optimizer steps of the whole run. With fewer shrinking steps than the paper's the rate grows in inverse proportion, since
            what a loss can move in all is rate times steps. ``None`` leaves the rate as it is.
    """
    if is_closing(closing, progress):
        return 0.0
    shrinking = 1 - closing
    fewer = 1.0 if steps is None else max(1.0, PAPER_STEPS / (steps * shrinking))
    return lambda_base * (progress / shrinking) ** 2 * fewer


def watched_pass(closing: float, progress: float, epoch: float | None) -> int:
    """Which pass over the data is being watched: 0 is the last of the shrinking part, 1 the first of the closing part, and so on.

    No pass is shorter than one over the whole data: the last one takes in what is left of the run, and where the closing part has no room
    for one there is none. A shrinking part with less room than one pass is watched from its beginning.

    Args:
        closing: the share of the run that the closing part takes.
        progress: how much of the run is done, from 0 to 1.
        epoch: the share of the run that one pass over the data takes; ``None`` where nobody knows.
    """
    length = UNKNOWN_PASS if epoch is None else epoch
    begins = 1 - closing
    if not is_closing(closing, progress):
        return 0 if progress > begins - length - _ROUNDING else NOT_WATCHING
    if progress > 1 - _ROUNDING:
        return NOT_WATCHING
    room = int((closing + _ROUNDING) / length)
    return 1 + min(int((progress - begins + _ROUNDING) / length), room - 1) if room else NOT_WATCHING
