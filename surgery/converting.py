"""Plan, apply, convert: from a network and a recipe's options to a rewritten network with its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from chansurg.surgery.counting import Counts, count
from chansurg.surgery.editing.applying import perform, working_copy
from chansurg.surgery.editing.origins import origins_of
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.files.provenance import attach, library_versions, record_of, refuse_wrapped, with_input_size
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.journal import Entry
from chansurg.surgery.plan import EVERY, Plan, Skip
from chansurg.surgery.recipe import find_recipe
from chansurg.surgery.selecting.patterns import named
from chansurg.surgery.survey import survey


def plan(
    model: nn.Module,
    recipe: str,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    input_size: tuple[int, ...] | None = None,
    **options: Any,
) -> Plan:
    """What a recipe would do to a network; nothing is changed.

    Args:
        model: any module that takes one float tensor ``[B, C, H, W]``.
        recipe: a recipe's name.
        only: patterns of sites' paths, as :mod:`chansurg.surgery.selecting.patterns` reads them; no other site is converted.
        skip: patterns of sites' paths that are left as they are.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels; the record's where left out.
        options: the recipe's options.

    Raises:
        InputError: for an unknown recipe or option, a pattern that matches nothing, an impossible input size, or a network wrapped in
            DataParallel and the like.
        Refusal: where the recipe applies nowhere; it lists every candidate with the reason.
    """
    refuse_wrapped(model)
    found = find_recipe(recipe)
    values = found.options(options)
    record = with_input_size(record_of(model), input_size)
    surveyed = survey(model, record.preprocessing.input_size)
    made = found.plan(surveyed, values, EVERY)
    if only or skip:
        made = found.plan(surveyed, values, named(made, only, skip))
    untraced = tuple(Skip(path or "(the network)", f"it could not be traced: {reason}") for path, reason in surveyed.untraced.items())
    made = replace(made, skipped=(*made.skipped, *untraced))
    if not made.edits:
        raise _nothing(made)
    return made


def _nothing(made: Plan) -> Refusal:
    lines = [f"{skip.path}: {skip.reason}" for skip in made.skipped] or ["there is no candidate at all"]
    return Refusal(
        f"The recipe {made.recipe} found no site with these options. Candidates and why they were left alone:\n    " + "\n    ".join(lines),
        where=", ".join(f"{name}={value}" for name, value in made.options.items()),
        not_done="Nothing was converted, and nothing was written.",
        to_do=f"`chansurg inspect` lists the sites of every recipe and mode; `chansurg recipes {made.recipe}` says what it is for.",
    )


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False, seed: int = 0, input_size: tuple[int, ...] | None = None) -> nn.Module:
    """Carry out a plan.

    Args:
        model: the network the plan was made for.
        plan: from :func:`plan`.
        inplace: change ``model`` itself instead of a deep copy; where it fails, ``model`` is then not usable any more.
        seed: initialises the new layers, each from its own path, so that the same input and options give the same numbers.
        input_size: as in :func:`plan`; counts are taken at it.

    Returns:
        The rewritten network, with one more journal entry.

    Raises:
        InputError: for a network wrapped in DataParallel and the like.
        Refusal: where an edit cannot be made, or the converted network would not run or put out something of another shape.
    """
    refuse_wrapped(model)
    record = with_input_size(record_of(model), input_size)
    size = record.preprocessing.input_size
    before, weights = count(model, size), weights_digest(model)
    shapes = _state_shapes(model)
    network = working_copy(model, inplace)
    graphs = perform(network, plan.edits, plan.signatures, seed=seed)
    origins = origins_of(plan.edits, shapes, _state_shapes(network))
    after = count_converted(network, size, before, plan)
    entry = Entry(
        recipe=plan.recipe,
        version=plan.version,
        options=plan.options,
        seed=seed,
        edits=plan.edits,
        signatures=plan.signatures,
        graphs=graphs,
        libraries=library_versions(model),
        kept=origins.kept,
        sliced=tuple(origins.sliced),
        new=tuple(origins.new),
        removed=tuple(origins.removed),
        sources=origins.sources,
        before=before.as_json(),
        after=after.as_json(),
        uncounted=after.uncounted,
        weights=weights_digest(network),
    )
    return attach(network, record.with_entry(entry, weights))


def count_converted(network: nn.Module, input_size: tuple[int, ...], before: Counts, plan: Plan) -> Counts:
    """Count a converted network, and see by the same pass over shapes that it still runs as the original did.

    Args:
        network: after the edits.
        input_size: ``(C, H, W)``.
        before: the original's counts at that size.
        plan: what was done, for the message.

    Raises:
        Refusal: where the pass breaks off in another place than the original's, or the outputs have other shapes.
    """
    try:
        after = count(network, input_size)
        reason = after.stopped if after.stopped != before.stopped else None
        if reason is None and after.outputs != before.outputs:
            reason = f"it puts out {_shapes(after.outputs)}, and the original {_shapes(before.outputs)}"
    except InputError as error:
        reason = error.what
    if reason is None:
        return after
    raise Refusal(
        f"The network converted by {plan.recipe} would not do what the original does: {reason}.",
        where=", ".join(site.path for site in plan.sites[:4]) + (f" and {len(plan.sites) - 4} more" if len(plan.sites) > 4 else ""),
        not_done="The conversion was given up, and nothing was written.",
        to_do="Something in the network relies on a layer that the recipe replaces or narrows. Try another mode or recipe.",
    )


def _state_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes) or "no tensor"


def convert(
    model: nn.Module,
    recipe: str,
    *,
    input_size: tuple[int, ...] | None = None,
    inplace: bool = False,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Rewrite a network by a recipe: :func:`plan`, then :func:`apply`.

    >>> import chansurg                                              # doctest: +SKIP
    >>> pix = chansurg.convert(resnet50, "pix", zeta=4)              # doctest: +SKIP
    """
    made = plan(model, recipe, input_size=input_size, **options)
    return apply(model, made, inplace=inplace, seed=seed, input_size=input_size)
