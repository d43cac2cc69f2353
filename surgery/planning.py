"""Planning a conversion: what a recipe would do to a network, and to which of its sites. Nothing is changed.

The network is surveyed, what goes into its layers is measured where there are images, and the recipe plans. Then names, times and limits
decide which of its sites are worth it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from chansurg.surgery.calibrated import SAMPLES, Progress, fit_to, held_out
from chansurg.surgery.carrying_out import carry_out
from chansurg.surgery.counting import count
from chansurg.surgery.drifting import NOISE_INPUTS, NOISE_MACS, affordable_noise, noise, pictures
from chansurg.surgery.edits import Repeat
from chansurg.surgery.errors import ChansurgError, InputError, Refusal
from chansurg.surgery.files.provenance import record_of, refuse_wrapped, with_input_size
from chansurg.surgery.images.opening import opened
from chansurg.surgery.journal import Record
from chansurg.surgery.listing import by_reason, path_list
from chansurg.surgery.plan import EVERY, Chosen, Plan, Skip
from chansurg.surgery.recipe import find_recipe, flag
from chansurg.surgery.selecting.cutting import Cutting
from chansurg.surgery.selecting.limits import Limits
from chansurg.surgery.selecting.patterns import named
from chansurg.surgery.selecting.timed import Where
from chansurg.surgery.selecting.timing_sites import time_sites
from chansurg.surgery.selecting.trials import Trials
from chansurg.surgery.statistics import Statistics, measure
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.landmarks import landmarks

if TYPE_CHECKING:
    from chansurg.surgery.images.unlabelled import Unlabelled

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
    only_if_faster: bool = False,
    runtime: str = Where.runtime,
    batch_size: int = Where.batch_size,
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
        only_if_faster: time each site in its real shape on this machine, before and after, and convert only those that gain
            (:mod:`chansurg.surgery.selecting.timing_sites`); limits then choose among them.
        runtime: what they are timed in: ``eager``, ``compile``, ``onnxruntime`` or ``aoti``.
        batch_size: and on how many images.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels; the record's where left out.
        seed: chooses the images, and initialises new layers where sites are tried.
        progress: where sites are tried or timed, told how much is done, and of how much.
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
    limits, where = Limits(max_blocks, target_macs, keep_drift), Where(runtime, batch_size)
    record = with_input_size(record_of(model), input_size)
    images = opened(calibrate, record.preprocessing, samples, seed)
    surveyed = survey(model, record.preprocessing.input_size)
    if images is not None:
        surveyed.statistics = _measured(model, images.divided()[0], seed)
    made = found.plan(surveyed, values, EVERY)
    choice, timing, allowed = None, None, EVERY
    if made.edits and (only or skip):
        allowed = named(made, only, skip)
        made = found.plan(surveyed, values, allowed)
    if made.edits and only_if_faster:
        _check_growth(made, "only_if_faster")
        paths, converted = [site.path for site in made.sites], carry_out(model, made, record, seed=seed)
        timing = time_sites(model, converted, paths, where, input_size=record.preprocessing.input_size, progress=progress)
        gaining = frozenset(site.path for site in timing.sites if site.faster)
        allowed = Chosen(gaining, {**allowed.reasons, **{site.path: site.reason for site in timing.sites if not site.faster}})
        made = found.plan(surveyed, values, allowed)
    if made.edits and limits:
        _check_growth(made, next(iter(limits.given)))
        trials = _trials(model, record, lambda paths: found.plan(surveyed, values, Chosen(paths)), images, len(made.sites), seed)
        cutting = Cutting(made, trials, limits, progress)
        worth_it, choice = cutting.choose()
        made = found.plan(surveyed, values, Chosen(worth_it.paths, {**allowed.reasons, **worth_it.reasons}))
    untraced = tuple(Skip(path or "(the network)", f"it could not be traced: {reason}") for path, reason in surveyed.untraced.items())
    asked = {name: list(patterns) for name, patterns in (("only", only), ("skip", skip)) if patterns} | limits.given
    asked |= {"only_if_faster": True, **vars(where)} if only_if_faster else {}
    made = replace(
        made, skipped=(*untraced, *made.skipped), landmarks=tuple(landmarks(surveyed)), asked=asked, choice=choice, timing=timing
    )
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
    timed = {} if made.timing is None else {site.path: site.told for site in made.timing.sites}
    reasons = by_reason((timed.get(skip.path, skip.path), skip.reason) for skip in made.skipped)
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
        fit, inputs = (lambda network: fit_to(model, network, few, 0, seed)), held_out(images, max(4, len(few) // 2))

    def converted(paths: frozenset[str]) -> nn.Module:
        return carry_out(model, planned(paths), record, seed=seed, before=counts)

    return Trials(model, converted, fit, inputs, now=now, at_first=at_first)


def _check_growth(made: Plan, option: str) -> None:
    if any(isinstance(edit, Repeat) for edit in made.edits):
        raise InputError(
            "A network that grows leaves no choice of where to cut: what its sites save pays for the new blocks.",
            where=f"option {flag(option)}",
            not_done="Nothing was converted.",
            to_do="Leave the depths or this option out, or name sites with --only and --skip.",
        )
