"""Plan, apply, convert: from a network and a recipe's options to a rewritten network with its journal.

A conversion surveys the network, measures what goes into its layers where there are images, lets the recipe plan, decides which of its
sites are worth it where limits were set, carries out the edits, fits what can be fitted to the images, and says how far it all drifted.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from chansurg.surgery.carrying_out import carry_out
from chansurg.surgery.counting import count
from chansurg.surgery.drift import HELD_OUT, IMAGES, NOISE
from chansurg.surgery.drifting import NOISE_INPUTS, NOISE_MACS, Inputs, Reference, affordable_noise, drift_on, noise, pictures
from chansurg.surgery.edits import Repeat
from chansurg.surgery.errors import ChansurgError, InputError, Refusal
from chansurg.surgery.files.provenance import attach, record_of, refuse_wrapped, with_input_size
from chansurg.surgery.files.weights_digest import tensor_digests, weights_digest
from chansurg.surgery.images.opening import opened
from chansurg.surgery.journal import Record
from chansurg.surgery.listing import by_reason, path_list
from chansurg.surgery.plan import EVERY, Chosen, Plan, Skip
from chansurg.surgery.recipe import find_recipe, flag
from chansurg.surgery.selecting.cutting import Cutting, Progress
from chansurg.surgery.selecting.limits import Limits
from chansurg.surgery.selecting.patterns import named
from chansurg.surgery.selecting.trials import Trials
from chansurg.surgery.statistics import Statistics, measure
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.landmarks import landmarks

if TYPE_CHECKING:
    from chansurg.surgery.images.unlabelled import Unlabelled

SAMPLES = 1024
"""Images that a conversion is calibrated on, where nothing else is said."""
_REASONS = 8
"""Reasons that a refusal tells."""
TRIAL_IMAGES, TRIAL_MACS = 128, 15 * 10**12
"""Images that each trial of where to cut is calibrated on, at most, and multiply-accumulates that all of them together may cost; half as
many held-out images are what its drift is measured on."""


def plan(
    model: nn.Module,
    recipe: str,
    *,
    calibrate: Unlabelled | str | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    max_blocks: int | None = None,
    target_macs: float | None = None,
    keep_drift: float | None = None,
    input_size: tuple[int, ...] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """What a recipe would do to a network; nothing is changed.

    Args:
        model: any module that takes one float tensor ``[B, C, H, W]``.
        recipe: a recipe's name.
        calibrate: images of the kind that the network was trained on, without labels: a folder, a zip, ``NAME:FOLDER`` for a data set of
            torchvision's, or what :func:`~chansurg.surgery.images.unlabelled.open_unlabelled` gives. The recipe then chooses by what the
            layers see.
        samples: how many of them are taken.
        only: patterns of sites' paths, as :mod:`chansurg.surgery.selecting.patterns` reads them; no other site is converted. A single
            string is one pattern.
        skip: likewise, of sites that are left as they are.
        max_blocks: convert so many sites at most, those that drift least for what they save (:mod:`chansurg.surgery.selecting.cutting`).
        target_macs: convert as many sites as bring the multiply-accumulates down to this share of the original's.
        keep_drift: convert as many sites as keep the relative error of the outputs within this bound.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels; the record's where left out.
        seed: chooses the images, and initialises new layers where sites are tried.
        progress: where limits are set, told how many trials are done, and of how many.
        options: the recipe's options.

    Raises:
        InputError: for an unknown recipe or option, a pattern that matches nothing, a limit out of range, an impossible input size, images
            that cannot be read, or a network wrapped in DataParallel and the like.
        Refusal: where the recipe applies nowhere, with the reason for every candidate; where no choice of sites keeps to the limits.
    """
    refuse_wrapped(model)
    found = find_recipe(recipe)
    values = found.options(options)
    only, skip = ((patterns,) if isinstance(patterns, str) else patterns for patterns in (only, skip))
    limits = Limits(max_blocks, target_macs, keep_drift)
    record = with_input_size(record_of(model), input_size)
    images = opened(calibrate, record.preprocessing, samples, seed)
    surveyed = survey(model, record.preprocessing.input_size)
    if images is not None:
        surveyed.statistics = _measured(model, images.divided()[0], seed)
    made = found.plan(surveyed, values, EVERY)
    choice, by_name = None, EVERY
    if made.edits and (only or skip):
        by_name = named(made, only, skip)
        made = found.plan(surveyed, values, by_name)
    if made.edits and limits:
        _check_growth(made, limits)
        trials = _trials(model, record, lambda paths: found.plan(surveyed, values, Chosen(paths)), images, len(made.sites), seed)
        cutting = Cutting(made, trials, limits, progress)
        worth_it, choice = cutting.choose()
        made = found.plan(surveyed, values, Chosen(worth_it.paths, {**by_name.reasons, **worth_it.reasons}))
    untraced = tuple(Skip(path or "(the network)", f"it could not be traced: {reason}") for path, reason in surveyed.untraced.items())
    asked = {name: list(patterns) for name, patterns in (("only", only), ("skip", skip)) if patterns} | limits.given
    made = replace(made, skipped=(*untraced, *made.skipped), landmarks=tuple(landmarks(surveyed)), asked=asked, choice=choice)
    if not made.edits:
        raise _nothing(made)
    return made


def _measured(model: nn.Module, images: Unlabelled, seed: int) -> Statistics:
    try:
        return measure(model, pictures(images).batches(), seed=seed)
    except ChansurgError:
        raise
    except Exception as error:  # a network may fail in any way it likes
        raise InputError(
            f"The network does not run on the images: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=f"{type(model).__name__}, on images of {images.where}",
            not_done="Nothing was converted.",
            to_do="Pass the input size with --input-size C,H,W, or convert without --calibrate.",
        ) from error


def _nothing(made: Plan) -> Refusal:
    reasons = by_reason((skip.path, skip.reason) for skip in made.skipped)
    lines = [f"{reason}: {path_list(paths, limit=3)}" for reason, paths in list(reasons.items())[:_REASONS]] or [
        "there is no candidate at all"
    ]
    if len(reasons) > _REASONS:
        lines.append(f"and {len(reasons) - _REASONS} other reasons, for {sum(map(len, list(reasons.values())[_REASONS:]))} more")
    return Refusal(
        f"The recipe {made.recipe} found no site with these options. Candidates and why they were left alone:\n    " + "\n    ".join(lines),
        where=", ".join(f"{name}={value}" for name, value in made.options.items()),
        not_done="Nothing was converted, and nothing was written.",
        to_do=f"`chansurg inspect` lists the sites of every recipe and mode; `chansurg recipes {made.recipe}` says what it is for.",
    )


def _trials(
    model: nn.Module, record: Record, planned: Callable[[frozenset[str]], Plan], images: Unlabelled | None, sites: int, seed: int
) -> Trials:
    size = record.preprocessing.input_size
    counts = count(model, size)
    now = counts.macs
    at_first = next((entry.before["macs"] for entry in record.journal if entry.before), now)
    fit, inputs = None, noise(size, affordable_noise(now, 4 * NOISE_INPUTS, 4 * NOISE_MACS))
    if images is not None:
        few = images.divided()[0].first(max(8, min(TRIAL_IMAGES, TRIAL_MACS // (4 * max(now, 1) * sites))))
        fit, inputs = (lambda network: fit_to(model, network, few, 0, seed)), _held_out(images, max(4, len(few) // 2))

    def converted(paths: frozenset[str]) -> nn.Module:
        return carry_out(model, planned(paths), record, seed=seed, before=counts)

    return Trials(model, converted, fit, inputs, now=now, at_first=at_first)


def _held_out(images: Unlabelled, most: int | None = None) -> Inputs:
    """Images that nothing was fitted on; where there are too few to hold any back, those that there are."""
    judging = images.divided()[1]
    kind = HELD_OUT if len(judging) < len(images) else IMAGES
    return pictures(judging if most is None else judging.first(most), kind)


def _check_growth(made: Plan, limits: Limits) -> None:
    if any(isinstance(edit, Repeat) for edit in made.edits):
        raise InputError(
            "A network that grows leaves no choice of where to cut: what its sites save pays for the new blocks.",
            where=f"option {flag(next(iter(limits.given)))}",
            not_done="Nothing was converted.",
            to_do="Leave the depths or the limits out, or name sites with --only and --skip.",
        )


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
        refine: steps of block-wise distillation behind the fits, 0 for none; left out, as :func:`~chansurg.surgery.calibration.calibrate`
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
        drift = drift_on(original, network, plan.landmarks, _held_out(images))
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
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    max_blocks: int | None = None,
    target_macs: float | None = None,
    keep_drift: float | None = None,
    input_size: tuple[int, ...] | None = None,
    inplace: bool = False,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Rewrite a network by a recipe: :func:`plan`, then :func:`apply`.

    >>> import chansurg                                              # doctest: +SKIP
    >>> pix = chansurg.convert(resnet50, "pix", zeta=4)              # doctest: +SKIP
    >>> fitted = chansurg.convert(resnet50, "mod", calibrate="imagenet/", keep_drift=0.1)              # doctest: +SKIP
    """
    check_refine(refine, calibrate)
    images = opened(calibrate, with_input_size(record_of(model), input_size).preprocessing, samples, seed)
    made = plan(
        model,
        recipe,
        calibrate=images,
        only=only,
        skip=skip,
        max_blocks=max_blocks,
        target_macs=target_macs,
        keep_drift=keep_drift,
        input_size=input_size,
        seed=seed,
        **options,
    )
    return apply(model, made, calibrate=images, refine=refine, inplace=inplace, seed=seed, input_size=input_size)
