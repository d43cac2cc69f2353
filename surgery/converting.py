"""Apply and convert: from a network and a plan, or a recipe's options, to a rewritten network with its journal.

A plan is carried out, what can be fitted to images is fitted, and the journal says how far the network has drifted.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from chansurg.surgery.calibrated import SAMPLES, Progress, check_refine, fit_to, held_out
from chansurg.surgery.carrying_out import carry_out
from chansurg.surgery.counting import count
from chansurg.surgery.drift import NOISE
from chansurg.surgery.drifting import Reference, affordable_noise, drift_on, noise
from chansurg.surgery.files.provenance import attach, record_of, refuse_wrapped, with_input_size
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.images.opening import opened
from chansurg.surgery.plan import Plan
from chansurg.surgery.planning import plan

if TYPE_CHECKING:
    from chansurg.surgery.images.unlabelled import Unlabelled


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    calibrate: Unlabelled | str | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    refine: int | None = None,
    inplace: bool = False,
    seed: int = 0,
    input_size: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Carry out a plan, fit the network to images where there are some, and measure how far it has drifted.

    Args:
        model: the network the plan was made for.
        plan: from :func:`plan`.
        calibrate: images, as in :func:`plan`; layers are fitted to what the original makes of them.
        samples: how many of them are taken.
        refine: steps of distillation behind the fits, 0 for none; left out, as :func:`~chansurg.surgery.calibration.calibrate`
            takes them.
        inplace: change ``model`` itself instead of a deep copy; where it fails, ``model`` is then not usable any more.
        seed: initialises the new layers, each from its own path, so that the same input and options give the same numbers; and chooses
            the images.
        input_size: as in :func:`plan`; counts are taken at it.
        progress: while layers are fitted, told how many parts of the network are done, and of how many.

    Returns:
        The rewritten network, with one more journal entry, whose ``results`` hold the drift, and what calibrating came to.

    Raises:
        InputError: for a network wrapped in DataParallel and the like, images that cannot be read, or steps without images.
        Refusal: where an edit cannot be made, or the converted network would not run or put out something of another shape.
    """
    refuse_wrapped(model)
    check_refine(refine, calibrate)
    record = with_input_size(record_of(model), input_size)
    images = opened(calibrate, record.preprocessing, samples, seed)
    results: dict[str, Any] = {}
    if plan.asked:
        results["asked"] = dict(plan.asked)
    if plan.choice is not None:
        results["choice"] = plan.choice.as_json()
    if plan.timing is not None:
        results["timing"] = plan.timing.as_json()
    if images is None:
        size = record.preprocessing.input_size
        counts = count(model, size)
        # Where the choice of sites was tried on noise, the same noise says what came of it.
        number = plan.choice.inputs if plan.choice and plan.choice.kind == NOISE else affordable_noise(counts.macs)
        reference = Reference(model, plan.landmarks, noise(size, number))
        network = carry_out(model, plan, record, inplace=inplace, seed=seed, before=counts)
        drift = reference.drift(network)
    else:
        original = copy.deepcopy(model) if inplace else model
        network = carry_out(model, plan, record, inplace=inplace, seed=seed)
        results["calibration"] = fit_to(original, network, images, refine, seed, progress)
        drift = drift_on(original, network, plan.landmarks, held_out(images))
    results["drift"] = drift.as_json()
    papers = record_of(network)
    entry = replace(papers.journal[-1], results=results, weights=weights_digest(network))
    entry = replace(entry, kept=None if entry.kept is None else entry.kept - len(entry.fitted))
    return attach(network, replace(papers, journal=(*papers.journal[:-1], entry)))


def convert(
    model: nn.Module,
    recipe: str,
    *,
    calibrate: Unlabelled | str | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    refine: int | None = None,
    input_size: tuple[int, ...] | None = None,
    inplace: bool = False,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Rewrite a network by a recipe: :func:`plan`, which takes the recipe's options and those of where to cut, then :func:`apply`.

    >>> import chansurg                                              # doctest: +SKIP
    >>> pix = chansurg.convert(resnet50, "pix", zeta=4)              # doctest: +SKIP
    >>> fitted = chansurg.convert(resnet50, "mod", calibrate="imagenet/", keep_drift=0.1)              # doctest: +SKIP
    """
    check_refine(refine, calibrate)
    images = opened(calibrate, with_input_size(record_of(model), input_size).preprocessing, samples, seed)
    made = plan(model, recipe, calibrate=images, input_size=input_size, seed=seed, **options)
    return apply(model, made, calibrate=images, refine=refine, inplace=inplace, seed=seed, input_size=input_size)
