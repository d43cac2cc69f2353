"""Slicing: a network with masks in, a smaller network out that computes the same, with the proof in its journal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery import gating
from chansurg.surgery.carrying_out import carry_out
from chansurg.surgery.counting import count
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.errors import Refusal
from chansurg.surgery.files.provenance import attach, record_of, refuse_wrapped, with_input_size
from chansurg.surgery.plan import Plan, Skip
from chansurg.surgery.slicing.couplings import Couplings
from chansurg.surgery.slicing.cutting import Cut, cut
from chansurg.surgery.slicing.freezing import Frozen, freeze
from chansurg.surgery.slicing.proof import prove
from chansurg.surgery.survey import survey

VERSION = 1


def slice(
    model: nn.Module,
    *,
    masks: Mapping[str, Tensor] | None = None,
    residual: str = "scatter",
    freeze_salience: bool = False,
    multiple_of: int = 1,
    input_size: tuple[int, ...] | None = None,
) -> nn.Module:
    """Remove from a network what its masks have let go of.

    Args:
        model: a network with gates; it is not changed.
        masks: ``{path of a gate: bool [C]}``, true is kept, in whole removable units; a gate that is not named keeps everything. Left
            out, they are the network's own: :func:`chansurg.masks`.
        residual: ``scatter`` lets a branch lose channels that its stage keeps: what is left of the branch is added into the stage at
            its places. ``coupled`` removes a channel of a stage only where every branch and the shortcut let go of it.
        freeze_salience: take the gates out. Each salience becomes its running value, and goes into the norm, or into every consumer.
        multiple_of: widths stay multiples of this number: of the channels that could go, the most important stay, masked.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels; the record's where left out.

    Returns:
        The smaller network. Its journal has one more entry, whose ``results`` hold the proof's figures
        (:class:`~chansurg.surgery.slicing.proof.Proof`) and, layer by layer, what went and why.

    Raises:
        InputError: for a network without gates, masks that do not fit, or an unknown option.
        Refusal: where nothing can be removed, where a salience cannot be frozen, or where the sliced network is not the masked one.
    """
    refuse_wrapped(model)
    gating.masks(model)  # there are gates
    record = with_input_size(record_of(model), input_size)
    size = record.preprocessing.input_size
    couplings = Couplings(survey(model, size))
    entries = couplings.masked(masks)
    masked = _with_masks(model, {path: torch.from_numpy(~gone) for path, gone in entries.items()})
    widths = couplings.widths(masks, residual, multiple_of=multiple_of)
    frozen = freeze(couplings.survey, gating.gates(masked)) if freeze_salience else Frozen()
    made = cut(couplings, widths, entries, frozen.paths)
    if not made.edits and not freeze_salience:
        raise _nothing(made, any(gone.any() for gone in entries.values()))
    options = {
        "residual": residual,
        "freeze_salience": freeze_salience,
        "multiple_of": multiple_of,
        "masks": None if masks is None else {path: gone.nonzero()[0].tolist() for path, gone in entries.items()},
    }
    attach(masked, record)
    plan = Plan(
        recipe="slice",
        version=VERSION,
        options=options,
        sites=(),
        edits=(*frozen.scales, *made.edits, *frozen.bypasses),
        skipped=tuple(Skip(path, reason) for path, reasons in made.staying.items() for reason in reasons),
        signatures={**made.signatures, **frozen.signatures},
    )
    sliced = carry_out(masked, plan, record)
    reference = masked
    if freeze_salience:
        reference = copy.deepcopy(masked)
        perform(reference, [*frozen.scales, *frozen.bypasses], frozen.signatures, seed=0)
    unmasked = _with_masks(model, {path: torch.ones(gate.entries, dtype=torch.bool) for path, gate in couplings.gates.items()})
    proof = prove(reference, sliced, unmasked, size)
    results = {**proof.as_json(), "removed": made.removed, "reasons": _listed(made.going), "staying": _listed(made.staying)}
    after = record_of(sliced)
    entry = replace(after.journal[-1], kind="slice", results=results)
    return attach(sliced, replace(after, journal=(*after.journal[:-1], entry)))


def original_counts(model: nn.Module) -> dict[str, int]:
    """Counts of the network before anything was done to it, as the journal has them; of the network as it is where that is empty."""
    now = count(model).as_json()
    first = next((entry.before for entry in record_of(model).journal if entry.before), now)
    return {name: first[name] for name in now}


def _with_masks(model: nn.Module, entries: Mapping[str, Tensor]) -> nn.Module:
    """A copy whose gates have these masks; those that are not named keep everything."""
    copied = copy.deepcopy(model)
    for path, gate in gating.gates(copied).items():
        kept = entries.get(path, torch.ones(gate.entries, dtype=torch.bool))
        with torch.no_grad():
            gate.mask.copy_(kept)
    return copied


def _listed(reasons: Mapping[str, Mapping[str, list[int]]]) -> dict[str, list[dict[str, Any]]]:
    return {path: [{"reason": reason, "channels": channels} for reason, channels in found.items()] for path, found in reasons.items()}


def _nothing(made: Cut, masked: bool) -> Refusal:
    if not masked:
        return Refusal(
            "There is nothing to remove: the masks keep every channel.",
            where="the masks",
            not_done="Nothing was sliced, and nothing was written.",
            to_do="Fine-tune the network first (`chansurg finetune`), which lets go of channels; or pass masks of your own.",
        )
    lines = [f"{path}: {reason}" for path, reasons in made.staying.items() for reason in reasons]
    return Refusal(
        "None of the masked channels can be removed. Why they stay:\n    " + "\n    ".join(lines),
        where="the masks",
        not_done="Nothing was sliced, and nothing was written.",
        to_do="Use other masks; --residual scatter and --multiple-of 1 let the most channels go.",
    )
