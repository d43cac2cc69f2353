"""From sites and options to edits. Which slices of a smaller layer stay is decided in :mod:`chansurg.surgery.keeping`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from chansurg.recipes.pix.fitting import fitted_subsets, in_slots
from chansurg.recipes.pix.options import TAU, PixOptions
from chansurg.recipes.pix.partition import FITTED, Subsets, partition
from chansurg.recipes.pix.sites import DownscaleSite, SqueezeSite, downscale_sites, squeeze_sites
from chansurg.surgery.demand import Demand, demand_behind, demand_of
from chansurg.surgery.editing.narrowing import reason_against
from chansurg.surgery.edits import Address, Bypass, Edit, Insert, LayerSpec, Narrow, Swap
from chansurg.surgery.keeping import Indices, filter_norms, most_telling, slice_norms, strongest, strongest_of_each
from chansurg.surgery.plan import Chosen, Plan, Site, Skip
from chansurg.surgery.recipe import bad_value
from chansurg.surgery.survey import Region, Survey
from chansurg.surgery.survey.kinds import conv_of, is_activation, is_depthwise, is_pointwise, module_of, path_of

if TYPE_CHECKING:
    from chansurg.recipes.pix import Pix


class CannotApply(Exception):
    """A site that the chosen options do not fit; the message is the reason."""


def all_sites(survey: Survey) -> tuple[list[Site], list[Skip]]:
    """Sites of both modes, whatever the options."""
    squeeze, no_squeeze = squeeze_sites(survey)
    downscale, no_downscale = downscale_sites(survey)
    known = {skip.path for skip in no_squeeze}
    return (
        [*(site.describe() for site in squeeze), *(site.describe() for site in downscale)],
        [*no_squeeze, *(skip for skip in no_downscale if skip.path not in known)],
    )


def plan(recipe: Pix, survey: Survey, options: PixOptions, chosen: Chosen) -> Plan:
    """What PiX would do to the surveyed network with these options, at the chosen sites. Source: PiX, Sec. 3.5."""
    options = _with_subsets(options, survey)
    draft = _Draft(survey, options, chosen)
    if options.mode == "squeeze":
        squeeze, skipped = squeeze_sites(survey)
        scale = _scale(squeeze, options)
        done = [draft.attempt(site, partial(draft.squeeze, site, scale)) for site in squeeze]
        if not any(done):
            _, skipped = squeeze_sites(survey, every=True)
    else:
        downscale, skipped = downscale_sites(survey)
        done = [draft.attempt(site, partial(draft.downscale, site)) for site in downscale]
        if not any(done):
            _, skipped = downscale_sites(survey, every=True)
    return Plan(
        recipe=recipe.name,
        version=recipe.version,
        options=dataclasses.asdict(options),
        sites=tuple(site for site in done if site is not None),
        edits=tuple(draft.edits()),
        skipped=tuple(dict.fromkeys((*skipped, *draft.skipped))),
        signatures=draft.signatures,
    )


def _with_subsets(options: PixOptions, survey: Survey) -> PixOptions:
    """The options with the kind of subsets that is taken where nobody chose one."""
    if options.subsets is None:
        return dataclasses.replace(options, subsets="contiguous" if survey.statistics is None else FITTED)
    if options.subsets == FITTED and survey.statistics is None:
        raise bad_value("pix", "subsets", FITTED, "Fitting takes images: pass some with --calibrate, or choose contiguous or strided.")
    return options


def _scale(sites: Sequence[SqueezeSite], options: PixOptions) -> Fraction:
    """What ``--zeta N`` multiplies every site's own ratio by; 1 for ``own``.

    It is N over the network's most common ratio, the larger ratio where two are equally common.
    """
    if not sites or not isinstance(options.zeta, int):
        return Fraction(1)
    counts = Counter(site.ratio for site in sites)
    return options.zeta / max(counts, key=lambda ratio: (counts[ratio], ratio))


class _Draft:
    """Edits as they gather; a site's edits are taken whole or not at all."""

    def __init__(self, survey: Survey, options: PixOptions, chosen: Chosen) -> None:
        self.survey = survey
        self.options = options
        self.chosen = chosen
        self.skipped: list[Skip] = []
        self.signatures: dict[str, Mapping[str, Any]] = {}
        self._structural: list[Edit] = []
        self._narrowed: dict[str, Narrow] = {}

    def edits(self) -> list[Edit]:
        """Slices first, then layers that are swapped and inserted, then what is bypassed."""
        order = {Swap: 0, Insert: 1, Bypass: 2}
        return [*self._narrowed.values(), *sorted(self._structural, key=lambda edit: order[type(edit)])]

    def attempt(self, site: SqueezeSite | DownscaleSite, build: Callable[[], dict[str, Any]]) -> Site | None:
        """Add one site's edits; where the options do not fit it, or it is not chosen, note the reason."""
        before = (list(self._structural), dict(self._narrowed), dict(self.signatures))
        try:
            if (against := self.chosen.reason_against(path_of(site.layer))) is not None:
                raise CannotApply(against)
            detail = build()
        except CannotApply as reason:
            self._structural, self._narrowed, self.signatures = before
            self.skipped.append(Skip(path_of(site.layer), str(reason)))
            return None
        described = site.describe()
        return dataclasses.replace(described, detail={**described.detail, **detail})

    def squeeze(self, site: SqueezeSite, scale: Fraction) -> dict[str, Any]:
        """Replace a squeezing layer, its norm and activation; a smaller width shrinks the spatial convolution behind it too."""
        width = math.ceil(site.out_channels / scale)
        if scale > site.out_channels:
            raise CannotApply(f"zeta {self.options.zeta} would leave nothing of its {site.out_channels} channels")
        if width > site.out_channels:
            raise CannotApply(f"zeta {self.options.zeta} would widen it from {site.out_channels} to {width} channels")
        kept: Indices = tuple(range(width))
        if width != site.out_channels:
            if site.kind == "feed-forward":
                raise CannotApply("its output is added to the residual stream, so its width is fixed")
            kept = self._shrink_behind(site, width)
        subsets = self._squeezed_subsets(site, kept)
        self._structural.append(Swap(path_of(site.layer), self._layer(site.in_channels, width, None, site.channel_dim, subsets)))
        self._sign(site.region, site.layer)
        for node in site.removed:
            self._structural.append(Bypass(self._address(node)))
            self._sign(site.region, node)
        return {"width": width, "removed": [path_of(node) for node in site.removed]}

    def _squeezed_subsets(self, site: SqueezeSite, kept: Indices) -> Subsets:
        """Which channels stand for those of the squeezed ones that are left."""
        readers = () if site.kind == "feed-forward" else self._readers(site.region, site.last)
        found = (
            demand_behind(self.survey, site.layer, any(map(is_activation, site.removed)), readers)
            if self.options.subsets == FITTED
            else None
        )
        if found is None:
            return self._unfitted
        demand, cross = found
        return in_slots(fitted_subsets(demand, len(kept), None), demand, cross[:, list(kept)])

    def _readers(self, region: Region, node: fx.Node) -> list[fx.Node]:
        """The layers that read what a node puts out."""
        return [member.node for member in self.survey.spaces(region).after(node).members if member.side == "in"]

    @property
    def _unfitted(self) -> str:
        """The kind of subsets where none can be fitted."""
        return "contiguous" if self.options.subsets in (None, FITTED) else str(self.options.subsets)

    def _shrink_behind(self, site: SqueezeSite, width: int) -> Indices:
        """Narrow whatever takes the squeezed channels; a bottleneck's spatial convolution puts out fewer, and its 1x1 takes fewer."""
        space = self.survey.spaces(site.region).after(site.layer)
        if space.blockers:
            raise CannotApply(f"its width cannot shrink: {space.blockers[0]}")
        gone = {path_of(site.layer), *(path_of(node) for node in site.removed)}
        readers = [member for member in space.members if member.path not in gone]
        if any(member.side == "out" for member in readers):
            raise CannotApply("its width is tied to another layer's output")
        groups = math.lcm(*(_groups(member.node) for member in readers))
        norms = [slice_norms(self._original(member.node)) for member in readers if member.side == "in"]
        demand = demand_of(self.survey, [member.node for member in readers if member.side == "in"])
        kept = strongest(norms, width, site.out_channels, groups) if demand is None else _telling(demand, width, groups)
        for member in readers:
            self._narrow(site.region, member.node, inputs=kept, outputs=kept if member.side == "both" else None)
            conv = conv_of(member.node)
            if member.side != "in" or conv is None or is_pointwise(conv) or conv.out_channels != site.out_channels:
                continue
            behind = self.survey.spaces(site.region).after(member.node)
            outs = [m for m in behind.members if m.side == "out"]
            if behind.blockers or len(outs) != 1 or not any(m.side == "in" for m in behind.members):
                continue
            self._shrink_output(site.region, member.node, width)
        return kept

    def downscale(self, site: DownscaleSite) -> dict[str, Any]:
        """Put PiX in front of a layer; in a bottleneck shrink the spatial convolution's output as well and put PiX in front of the 1x1."""
        zeta = int(self.options.zeta) if isinstance(self.options.zeta, int) else 1
        if site.expand is None:
            width = self._put_before(site.region, site.layer, range(site.in_channels), zeta, site.channel_dim)
            return {"width": width}
        conv = conv_of(site.layer)
        assert conv is not None
        width = self._put_before(site.region, site.layer, range(site.in_channels), zeta, 1)
        inner = -(-conv.out_channels // zeta)
        kept = self._shrink_output(site.region, site.layer, inner, leave=site.expand) if zeta > 1 else tuple(range(conv.out_channels))
        last = self._put_before(site.region, site.expand, kept, zeta, 1)
        return {"width": width, "expand_width": last}

    def _put_before(self, region: Region, node: fx.Node, channels: Sequence[int], zeta: int, channel_dim: int) -> int:
        """Insert PiX over ``channels`` of a layer's input and slice the layer to match; returns the new input width."""
        if zeta > len(channels):
            raise CannotApply(f"it has {len(channels)} channels, too few for subsets of {zeta}")
        width = -(-len(channels) // zeta)
        conv = conv_of(node)
        groups = 1 if conv is None else conv.groups
        if groups > 1 and len(channels) % (groups * zeta):
            raise CannotApply(f"its {groups} groups of {len(channels) // groups} channels cannot be divided by {zeta}")
        subsets = self._subsets_before(node, channels, zeta, groups)
        if zeta > 1:
            parts = [[channels[i] for i in part] for part in partition(len(channels), width, zeta, subsets)]
            kept = strongest_of_each(slice_norms(self._original(node)), parts)
            self._narrow(region, node, inputs=kept)
        module = module_of(node)
        assert module is not None
        address = self._address(node)
        name = self._free_name(address.owner, f"{address.operation.removeprefix('self.').replace('.', '_')}_pix")
        layer = self._layer(len(channels), width, zeta, channel_dim, subsets)
        self._structural.append(Insert(address, name, layer))
        self._sign(region, node)
        return width

    def _subsets_before(self, node: fx.Node, channels: Sequence[int], zeta: int, groups: int) -> Subsets:
        """Which of a layer's input ``channels`` share a subset; a group's channels are neighbours."""
        demand = demand_of(self.survey, [node]) if self.options.subsets == FITTED and zeta > 1 else None
        if demand is None:
            return self._unfitted if groups == 1 else "contiguous"
        size, found = len(channels) // groups, []
        for first in range(0, len(channels), size):
            of_group = fitted_subsets(demand.of(channels[first : first + size]), -(-size // zeta), zeta)
            found += [[first + channel for channel in subset] for subset in of_group]
        return found

    def _shrink_output(self, region: Region, node: fx.Node, width: int, leave: fx.Node | None = None) -> Indices:
        """Keep the strongest filters of a convolution, and the same channels of everything in its output's space but ``leave``."""
        conv = conv_of(node)
        assert conv is not None
        demand = demand_of(self.survey, self._readers(region, node))
        if demand is None:
            kept = strongest([filter_norms(self._original(node))], width, conv.out_channels, conv.groups)
        else:
            kept = _telling(demand, width, conv.groups)
        for member in self.survey.spaces(region).after(node).members:
            if leave is not None and member.node is leave:
                continue
            self._narrow(
                region,
                member.node,
                inputs=kept if member.side == "in" else None,
                outputs=kept if member.side in ("out", "both") else None,
            )
        return kept

    def _narrow(self, region: Region, node: fx.Node, *, inputs: Indices | None = None, outputs: Indices | None = None) -> None:
        path = path_of(node)
        old = self._narrowed.get(path, Narrow(path))
        new = Narrow(path, old.in_channels if inputs is None else inputs, old.out_channels if outputs is None else outputs)
        reason = reason_against(self._original(node), new.in_channels, new.out_channels) or self.survey.uneditable(
            region, node, replaces=True
        )
        if reason is not None:
            raise CannotApply(f"{path} cannot be narrowed: {reason}")
        self._narrowed[path] = new
        self._sign(region, node)

    def _original(self, node: fx.Node) -> nn.Module:
        """The caller's module that the node calls, with its numbers."""
        return self.survey.original.get_submodule(path_of(node))

    def _layer(self, in_channels: int, width: int, zeta: int | None, channel_dim: int, subsets: Subsets) -> LayerSpec:
        arguments = {
            "in_channels": in_channels,
            "out_channels": width,
            "zeta": zeta,
            "operator": self.options.operator,
            "tau": self.options.tau,
            "subsets": subsets,
            "channel_dim": channel_dim,
        }
        if self.survey.statistics is not None:
            # Between the threshold and one: all that is passed on at first is means, which a fitted reader makes most of.
            arguments["constant"] = (1 + (self.options.tau if self.options.tau < 1 else TAU)) / 2
        return LayerSpec("pix.PickOrMix", arguments)

    def _address(self, node: fx.Node) -> Address:
        address = node.meta["address"]
        assert isinstance(address, Address)
        return address

    def _free_name(self, owner: str, name: str) -> str:
        """The name, numbered where an earlier conversion took it."""
        taken = self.survey.original.get_submodule(owner)
        names = (name if number == 1 else f"{name}{number}" for number in itertools.count(1))
        return next(candidate for candidate in names if not hasattr(taken, candidate))

    def _sign(self, region: Region, node: fx.Node) -> None:
        owner = self._address(node).owner
        self.signatures[owner] = self.survey.signature(region, owner)


def _telling(demand: Demand, width: int, groups: int) -> Indices:
    """The channels that readers can least do without, in their order; equally many of each group where that is possible."""
    return tuple(sorted(most_telling(demand, width, groups if width % groups == 0 else 1)))


def _groups(node: fx.Node) -> int:
    """Into how many runs a layer divides its channels; a depthwise convolution can lose any of them."""
    conv = conv_of(node)
    return 1 if conv is None or is_depthwise(conv) else conv.groups
