"""From sites and options to edits: a gate behind each layer, and a factor of two where it makes up for the gate's first salience.

A generator whose last layer is zero gives a salience of exactly one half, and a factor of two is exact in every floating-point format, so
the converted network is the same function, bit for bit, wherever no library adds up in another order for it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chansurg.recipes.pcs.importance import importance_of
from chansurg.recipes.pcs.options import PcsOptions
from chansurg.recipes.pcs.sites import GateSite, gate_sites
from chansurg.surgery.edits import Attach, Edit, LayerSpec
from chansurg.surgery.plan import Chosen, Plan, Site, Skip
from chansurg.surgery.survey import Survey
from chansurg.surgery.survey.kinds import path_of

if TYPE_CHECKING:
    from chansurg.recipes.pcs import Pcs

MAKES_UP = 2.0


def all_sites(survey: Survey) -> tuple[list[Site], list[Skip]]:
    """Every place for a gate, whatever the options."""
    sites, skipped = gate_sites(survey)
    return [site.describe() for site in sites], skipped


def plan(recipe: Pcs, survey: Survey, options: PcsOptions, chosen: Chosen) -> Plan:
    """What PCS would do to the surveyed network with these options, at the chosen sites."""
    possible, skipped = gate_sites(survey)
    against = {path: reason for site in possible if (reason := chosen.reason_against(path := path_of(site.layer))) is not None}
    sites = [site for site in possible if path_of(site.layer) not in against]
    names = _Names(survey)
    edits: list[Edit] = []
    signatures: dict[str, Mapping[str, Any]] = {}
    for site in sites:
        edits += [*(share.scale(MAKES_UP) for share in site.shares), _attach(survey, site, options, names)]
        owner = site.meets.after.owner
        signatures[owner] = survey.signature(site.region, owner)
    return Plan(
        recipe=recipe.name,
        version=recipe.version,
        options=dataclasses.asdict(options),
        sites=tuple(site.describe() for site in sites),
        edits=tuple(edits),
        skipped=(*skipped, *(Skip(path, reason) for path, reason in against.items())),
        signatures=signatures,
    )


def _attach(survey: Survey, site: GateSite, options: PcsOptions, names: _Names) -> Attach:
    norm = None if site.tail.norm is None else survey.original.get_submodule(path_of(site.tail.norm))
    layer = LayerSpec(
        "pcs.SalienceGate",
        {
            "in_channels": site.in_channels,
            "entries": site.entries,
            "unit": site.unit,
            "channel_dim": site.channel_dim,
            **dataclasses.asdict(options),
            "importance": importance_of(survey.original.get_submodule(path_of(site.layer)), norm, site.unit),
        },
    )
    owner = site.meets.after.owner
    return Attach(site.meets.after, site.meets.reads, names.free(owner, path_of(site.layer)), layer)


class _Names:
    """Names for gates: that of the gated layer, as its owner knows it, with ``_salience`` behind it."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._given: set[tuple[str, str]] = set()

    def free(self, owner: str, layer: str) -> str:
        """A name that neither the module at ``owner`` nor an earlier gate has."""
        stem = f"{layer.removeprefix(f'{owner}.' if owner else '').replace('.', '_')}_salience"
        taken = self._survey.original.get_submodule(owner)
        names = (stem if number == 1 else f"{stem}{number}" for number in itertools.count(1))
        name = next(name for name in names if not hasattr(taken, name) and (owner, name) not in self._given)
        self._given.add((owner, name))
        return name
