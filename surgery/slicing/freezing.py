"""Taking gates out: each salience becomes a constant, and the constants go into the norms or the layers that read the channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chansurg.surgery.edits import Address, Bypass, Edit
from chansurg.surgery.errors import Refusal
from chansurg.surgery.gating import Gate
from chansurg.surgery.survey import Survey
from chansurg.surgery.survey.factors import NoPlace, places_for_factors
from chansurg.surgery.survey.kinds import module_of, path_of


@dataclass
class Frozen:
    """What freezing does, as plain data.

    Args:
        scales: the constants' new places.
        bypasses: the gates' calls, which go.
        signatures: for each module whose forward is rewritten, its arguments that are no tensors.
        paths: of the gates.
    """

    scales: list[Edit] = field(default_factory=list)
    bypasses: list[Edit] = field(default_factory=list)
    signatures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)


def freeze(survey: Survey, gates: Mapping[str, Gate]) -> Frozen:
    """The edits that put every gate's frozen salience in its place.

    Args:
        survey: of the network; its shapes tell where constants can go.
        gates: the network's gates by path, whose running salience and mask are taken.

    Raises:
        Refusal: where a gate's constants have no place.
    """
    made = Frozen(paths=list(gates))
    left = dict(gates)
    for region in survey.regions:
        for node in region.nodes:
            gate = left.pop(path_of(node), None) if isinstance(module_of(node), Gate) else None
            if gate is None:
                continue
            path, at = path_of(node), node.meta["address"]
            assert isinstance(at, Address)
            if (reason := survey.uneditable(region, node, replaces=False)) is not None:
                raise _refuse(path, reason)
            try:
                shares = places_for_factors(survey, region, node, gate.channel_dim, frozen=gates)
            except NoPlace as failure:
                raise _refuse(path, str(failure)) from None
            made.scales += [share.scale(gate.frozen_salience().tolist()) for share in shares]
            made.bypasses.append(Bypass(at))
            made.signatures[at.owner] = survey.signature(region, at.owner)
    for path in left:
        raise _refuse(path, "it is in a part of the network that could not be traced")
    return made


def _refuse(path: str, reason: str) -> Refusal:
    return Refusal(
        f"The salience of {path} cannot be frozen: {reason}.",
        where=path,
        not_done="Nothing was sliced, and nothing was written.",
        to_do="Slice without --freeze-salience; the salience of the channels that stay is then computed as before.",
    )
