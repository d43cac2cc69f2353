"""Fitting a converted network to images, and the images that are held back to judge what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from chansurg.surgery.drift import HELD_OUT, IMAGES
from chansurg.surgery.drifting import Inputs, pictures
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.weights_digest import tensor_digests

if TYPE_CHECKING:
    from chansurg.surgery.images.unlabelled import Unlabelled

Progress = Callable[[int, int], None]
SAMPLES = 1024
"""Images that a conversion is calibrated on, where nothing else is said."""


def check_refine(refine: int | None, calibrate: object) -> None:
    """Refuse steps of refining without images, and what is no number of steps.

    Raises:
        InputError: for either.
    """
    if refine is not None and (calibrate is None or type(refine) is not int or refine < 0):
        raise InputError(
            "Refining needs images to refine with." if calibrate is None else f"{refine!r:.80} is no number of steps.",
            where="option --refine",
            not_done="Nothing was converted.",
            to_do="Name images with --calibrate DATA." if calibrate is None else "Pass a whole number, 0 or more.",
        )


def fit_to(
    original: nn.Module, converted: nn.Module, images: Unlabelled, refine: int | None, seed: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Calibrate a converted network in place; tells, as JSON values, what it came to and which tensors changed."""
    from chansurg.surgery.calibration import calibrate

    before = tensor_digests(converted)
    told = calibrate(original, converted, images, refine=refine, seed=seed, progress=progress)
    after = tensor_digests(converted)
    return {**told.as_json(), "tensors": [name for name, digest in after.items() if before.get(name) != digest]}


def held_out(images: Unlabelled, most: int | None = None) -> Inputs:
    """Images that nothing was fitted on; where there are too few to hold any back, those that there are."""
    judging = images.divided()[1]
    kind = HELD_OUT if len(judging) < len(images) else IMAGES
    return pictures(judging if most is None else judging.first(most), kind)
