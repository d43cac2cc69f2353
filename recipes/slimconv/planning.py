"""From sites and options to edits.

Which filters a slim convolution keeps is decided in :mod:`chansurg.recipes.slimconv.filters`, and where there are statistics of images in
:mod:`chansurg.recipes.slimconv.fitting`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from chansurg.recipes.slimconv.filters import Start, Starts, starts
from chansurg.recipes.slimconv.fitting import fitted_starts
from chansurg.recipes.slimconv.options import SlimConvOptions
from chansurg.recipes.slimconv.sites import SlimSite, slim_sites
from chansurg.surgery.editing.narrowing import reason_against
from chansurg.surgery.edits import Address, Edit, Inherit, LayerSpec, Narrow, Swap
from chansurg.surgery.keeping import Indices
from chansurg.surgery.plan import Chosen, Plan, Site, Skip
from chansurg.surgery.survey import Region, Survey
from chansurg.surgery.survey.channels import Member
from chansurg.surgery.survey.kinds import is_depthwise, path_of

if TYPE_CHECKING:
    from chansurg.recipes.slimconv import Slimconv


class CannotApply(Exception):
    """A site that the chosen options do not fit; the message is the reason."""


def all_sites(survey: Survey) -> tuple[list[Site], list[Skip]]:
    """Every place for a slim convolution, whatever the options."""
    sites, skipped = slim_sites(survey)
    return [site.describe() for site in sites], list(dict.fromkeys(skipped))


def plan(recipe: Slimconv, survey: Survey, options: SlimConvOptions, chosen: Chosen) -> Plan:
    """What SlimConv would do to the surveyed network with these options, at the chosen sites. Source: SlimConv, Sec. III."""
    refused: dict[str, str] = {}
    while True:
        sites, skipped = slim_sites(survey, without=refused)
        left_out = {path: reason for site in sites if (reason := chosen.reason_against(path := path_of(site.layer))) is not None}
        if left_out:
            refused |= left_out
            continue
        draft = _Draft(survey, options, sites)
        done = [site for site in map(draft.attempt, sites) if site is not None]
        if not draft.refused:
            break
        # What stays as it is may tie the channels of others together, so all is thought over again without it.
        refused |= draft.refused
    if not done:
        _, skipped = slim_sites(survey, every=True, without=refused)
    return Plan(
        recipe=recipe.name,
        version=recipe.version,
        options=dataclasses.asdict(options),
        sites=tuple(done),
        edits=tuple(draft.edits()),
        skipped=tuple(dict.fromkeys((*(Skip(path, reason) for path, reason in refused.items()), *skipped))),
        signatures=draft.signatures,
    )


class _Draft:
    """Edits as they gather, from the input to the output; a site's edits are taken whole or not at all."""

    def __init__(self, survey: Survey, options: SlimConvOptions, sites: Sequence[SlimSite]) -> None:
        self.survey = survey
        self.options = options
        self.refused: dict[str, str] = {}
        self.signatures: dict[str, Mapping[str, Any]] = {}
        self._replaced = {path_of(site.layer) for site in sites}
        self._swaps: list[Swap] = []
        self._inherited: list[Inherit] = []
        self._narrowed: dict[str, Narrow] = {}
        self._inputs: dict[str, Indices] = {}  # of replaced convolutions: their input channels that are left

    def edits(self) -> list[Edit]:
        """New layers first, then slices, then what the new layers start with."""
        return [*self._swaps, *self._narrowed.values(), *self._inherited]

    def attempt(self, site: SlimSite) -> Site | None:
        """Add one site's edits; where the options do not fit it, note the reason."""
        before = (dict(self._narrowed), dict(self._inputs), dict(self.signatures))
        try:
            return self._slim(site)
        except CannotApply as reason:
            self._narrowed, self._inputs, self.signatures = before
            self.refused[path_of(site.layer)] = str(reason)
            return None

    def _slim(self, site: SlimSite) -> Site:
        """Replace a convolution; what shares its output's channels keeps those of the filters that it keeps, in their new order."""
        path = path_of(site.layer)
        conv = self.survey.original.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        folds, paths = self.options.folds, self.options.paths
        channels = self._inputs.get(path, tuple(range(conv.in_channels)))
        depthwise = is_depthwise(conv)
        groups = len(channels) if depthwise else conv.groups
        outputs = len(channels) * (conv.out_channels // conv.in_channels) if depthwise else conv.out_channels
        for count, what in ((len(channels), "input"), (outputs, "output")):
            if count % folds:
                raise CannotApply(
                    f"k = {self.options.k} makes one channel of {folds}, and {folds} does not divide its {count} {what} channels"
                )
            if count < 2 * folds:
                raise CannotApply(f"k = {self.options.k} would leave nothing of its {count} {what} channels for the bottom path")
        if len(channels) % groups:
            raise CannotApply(f"its {groups} groups do not divide the {len(channels)} channels that are left of its input")
        begins = starts(conv, channels, outputs, groups, folds, paths)
        attention: tuple[float, ...] | None = None
        if (fitted := fitted_starts(self.survey, site, channels, begins, self.options)) is not None:
            begins, attention = fitted
        for member in site.members:
            self._shrink(site.region, member, begins.kept)
        self._swaps.append(Swap(path, self._layer(conv, len(channels), outputs, groups, begins, attention)))
        for name, begin in zip(("top", "bottom.conv", "third.conv"), begins.paths, strict=False):
            self._inherited += _inheritance(path, name, begin, has_bias=conv.bias is not None)
        self._sign(site.region, site.layer)
        described = site.describe()
        return dataclasses.replace(described, detail={**described.detail, "in_channels": len(channels), "width": len(begins.kept)})

    def _shrink(self, region: Region, member: Member, kept: Indices) -> None:
        if member.side == "in" and member.path in self._replaced:
            self._inputs[member.path] = kept
            return
        old = self._narrowed.get(member.path, Narrow(member.path))
        new = Narrow(member.path, kept, old.out_channels) if member.side == "in" else Narrow(member.path, old.in_channels, kept)
        reason = reason_against(self.survey.original.get_submodule(member.path), new.in_channels, new.out_channels)
        if reason is not None:
            raise CannotApply(f"{member.path}, which takes its output, cannot keep these channels: {reason}")
        self._narrowed[member.path] = new
        self._sign(region, member.node)

    def _layer(
        self, conv: nn.Conv2d, inputs: int, outputs: int, groups: int, begins: Starts, attention: Sequence[float] | None
    ) -> LayerSpec:
        arguments: dict[str, Any] = {
            "in_channels": inputs,
            "conv_channels": outputs,
            "kernel_size": list(conv.kernel_size),
            "stride": list(conv.stride),
            "padding": conv.padding if isinstance(conv.padding, str) else list(conv.padding),
            "dilation": list(conv.dilation),
            "groups": groups,
            "bias": conv.bias is not None,
            "padding_mode": conv.padding_mode,
            "folds": self.options.folds,
            "floor": self.options.floor,
            "weights": self.options.weights,
            "paths": self.options.paths,
            "selections": [list(selection) for selection in begins.selections],
        }
        if attention is not None:
            arguments["attention"] = list(attention)
        return LayerSpec("slimconv.SlimConv", arguments)

    def _sign(self, region: Region, node: fx.Node) -> None:
        address = node.meta["address"]
        assert isinstance(address, Address)
        self.signatures[address.owner] = self.survey.signature(region, address.owner)


def _inheritance(path: str, name: str, begin: Start, *, has_bias: bool) -> Iterator[Inherit]:
    """What one path's convolution takes over from the convolution at ``path``: its filters, those with the same slices in one edit."""
    if begin.slices is None:
        return
    rows: dict[Indices, list[int]] = {}
    for row, slices in enumerate(begin.slices):
        rows.setdefault(slices, []).append(row)
    for slices, of_them in rows.items():
        taken = tuple(begin.filters[row] for row in of_them)
        every = len(rows) == 1
        yield Inherit(f"{path}.{name}.weight", f"{path}.weight", (taken, slices, None, None), None if every else tuple(of_them))
    if has_bias:
        yield Inherit(f"{path}.{name}.bias", f"{path}.bias", (begin.filters,))
