"""A plan carried out: edits made, what became of every tensor, counts before and after, one more journal entry."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from chansurg.surgery.counting import Counts, count
from chansurg.surgery.editing.applying import perform, working_copy
from chansurg.surgery.editing.origins import origins_of
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.files.provenance import attach, library_versions
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.journal import Entry, Record
from chansurg.surgery.plan import Plan


def carry_out(
    model: nn.Module, plan: Plan, record: Record, *, inplace: bool = False, seed: int = 0, before: Counts | None = None
) -> nn.Module:
    """Make the edits of a plan.

    Args:
        model: the network the plan was made for.
        plan: what is done.
        record: the network's papers, with the input size that counts are taken at.
        inplace: change ``model`` itself instead of a deep copy; where it fails, ``model`` is then not usable any more.
        seed: initialises the new layers, each from its own path.
        before: what the network costs at that size, where it was counted already.

    Returns:
        The rewritten network, with one more journal entry.

    Raises:
        Refusal: where an edit cannot be made, or the converted network would not run or put out something of another shape.
    """
    size = record.preprocessing.input_size
    before, weights = before or count(model, size), weights_digest(model)
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
