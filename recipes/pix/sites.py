"""Where PiX goes: three kinds of sites, found in the graph of layers, and the reason for every candidate that is none.

- ``squeeze``: a 1x1 convolution that reduces channels ahead of a spatial convolution (and the equal-width one of the same stage's first
block).
- ``feed-forward``: the squeezing second layer of a feed-forward network.
- ``downscale``: a convolution in front of which PiX can be put, in one of three neighbourhoods: ``plain``, ``bottleneck``,
``depthwise-separable``.

Source: PiX, Sec. 3.5.1, 3.5.2, 4.4; Tables 1, 3, 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import fx, nn

from chansurg.recipes.pix.layer import PickOrMix
from chansurg.surgery.plan import Site, Skip
from chansurg.surgery.survey import Block, Region, Survey
from chansurg.surgery.survey.chains import Tail, feeding_layer, feeds_addition, feeds_spatial_conv, is_spatial, stems, tail_of
from chansurg.surgery.survey.kinds import (
    conv_of,
    follow,
    is_activation,
    is_batched,
    is_depthwise,
    is_neutral,
    is_pointwise,
    is_pooled,
    is_strided,
    linear_of,
    module_of,
    path_of,
    shape_of,
    tensor_inputs,
)


@dataclass(frozen=True)
class SqueezeSite:
    """A squeezing layer that PiX can replace, with its norm and activation.

    Args:
        kind: ``squeeze`` or ``feed-forward``.
        layer: the convolution or linear layer.
        removed: norm and activation that go with it.
        last: the last node of the three; what follows takes its output.
        channel_dim: where the layer's channels are: 1, or -1 for a linear layer.
    """

    region: Region
    kind: str
    layer: fx.Node
    removed: tuple[fx.Node, ...]
    last: fx.Node
    in_channels: int
    out_channels: int
    channel_dim: int

    @property
    def ratio(self) -> Fraction:
        """The sampling factor that keeps the width."""
        return Fraction(self.in_channels, self.out_channels)

    def describe(self) -> Site:
        """The site as plain data."""
        detail = {"in_channels": self.in_channels, "out_channels": self.out_channels, "ratio": round(float(self.ratio), 4)}
        return Site(path_of(self.layer), self.kind, detail)


@dataclass(frozen=True)
class DownscaleSite:
    """A convolution that PiX can be put in front of.

    Args:
        kind: ``plain``, ``bottleneck`` or ``depthwise-separable``.
        layer: the convolution (or pointwise linear layer) whose input shrinks.
        expand: in a bottleneck, the expanding 1x1 in front of which PiX is put again.
    """

    region: Region
    kind: str
    layer: fx.Node
    in_channels: int
    channel_dim: int
    expand: fx.Node | None = None

    def describe(self) -> Site:
        """The site as plain data."""
        detail: dict[str, Any] = {"in_channels": self.in_channels, "neighbourhood": self.kind}
        if self.expand is not None:
            detail["expand"] = path_of(self.expand)
        return Site(path_of(self.layer), "downscale", detail)


def squeeze_sites(survey: Survey, *, every: bool = False) -> tuple[list[SqueezeSite], list[Skip]]:
    """Every squeeze and feed-forward site, and every 1x1 convolution or linear layer that looked like one.

    Args:
        survey: of the network.
        every: give a reason for every convolution and linear layer, those included that nobody would take for a squeeze.
    """
    sites: list[SqueezeSite] = []
    skipped: list[Skip] = []
    equal: list[SqueezeSite] = []
    for region in survey.regions:
        ends = {_last_layer(block) for block in survey.blocks(region)}
        hidden = _feed_forward_layers(region, ends)
        for node in region.nodes:
            candidate = _candidate(region, node, "feed-forward" if node in hidden else "squeeze")
            if candidate is None:
                if node in ends and _reduces_tokens(node):
                    skipped.append(Skip(path_of(node), "no layer that widens by as much feeds it through an activation alone"))
                elif every and (why := _no_squeeze(node)) is not None:
                    skipped.append(Skip(path_of(node), why))
                continue
            reason = _refusal(survey, candidate)
            if reason is not None:
                if every or _looks_like_one(candidate):
                    skipped.append(Skip(path_of(node), reason))
            elif candidate.in_channels == candidate.out_channels:
                equal.append(candidate)
            else:
                sites.append(candidate)
    for candidate in equal:
        if _first_of_its_stage(candidate, sites):
            sites.append(candidate)
        else:
            skipped.append(
                Skip(path_of(candidate.layer), f"it does not reduce channels ({candidate.in_channels} to {candidate.out_channels})")
            )
    order = {node: index for index, node in enumerate(node for region in survey.regions for node in region.nodes)}
    return sorted(sites, key=lambda site: order[site.layer]), skipped


def _candidate(region: Region, node: fx.Node, kind: str) -> SqueezeSite | None:
    conv, linear = conv_of(node), linear_of(node)
    if conv is not None and is_pointwise(conv):
        tail = tail_of(node)
        if kind == "feed-forward":
            tail = _norm_only(tail, node)
        return SqueezeSite(region, kind, node, tail.nodes, tail.last, conv.in_channels, conv.out_channels, 1)
    if linear is not None and kind == "feed-forward":
        return SqueezeSite(region, kind, node, (), node, linear.in_features, linear.out_features, -1)
    return None


def _norm_only(tail: Tail, layer: fx.Node) -> Tail:
    """A feed-forward network's second layer takes its batch norm along; a norm of the residual stream stays."""
    norm = tail.norm
    if norm is not None and "batch" in type(module_of(norm)).__name__.lower() and tail.activation is None:
        return Tail(norm, None, norm)
    return Tail(None, None, layer)


def _looks_like_one(candidate: SqueezeSite) -> bool:
    """Whether a reader might expect a site there: it reduces channels, or a spatial convolution works on what it puts out."""
    return candidate.ratio > 1 or (not is_pooled(candidate.layer) and feeds_spatial_conv(candidate.last))


def _no_squeeze(node: fx.Node) -> str | None:
    """Why a layer is not even a candidate; ``None`` for what is no layer."""
    module, conv = module_of(node), conv_of(node)
    if conv is not None:
        return f"it is a {'depthwise ' if is_depthwise(conv) else ''}{'x'.join(map(str, conv.kernel_size))} convolution, no squeeze"
    if linear_of(node) is not None:
        return "it is a linear layer, and not the second one of a feed-forward network"
    return _no_layer(module)


def _no_layer(module: nn.Module | None) -> str | None:
    if isinstance(module, PickOrMix):
        return "PiX is here already"
    return "it is a transposed convolution" if isinstance(module, nn.modules.conv._ConvTransposeNd) else None


def _refusal(survey: Survey, site: SqueezeSite) -> str | None:
    """Why a candidate is no site; ``None`` where it is one."""
    conv = conv_of(site.layer)
    shape, before = shape_of(site.layer), shape_of(_input(site.layer))
    if conv is not None:
        if shape is None or before is None:
            return "its shapes are not known"
        if is_pooled(site.layer):
            return "it works on pooled vectors, not on maps"
        ahead = feeds_spatial_conv(site.last)
        if site.kind == "squeeze" and not ahead and site.ratio >= 1:
            return "no spatial convolution follows it at once"
        if site.kind == "squeeze" and ahead and feeds_addition(site.last):
            return "its output is a residual stream that other blocks add to"
        if site.ratio < 1:
            return f"it adds channels ({site.in_channels} to {site.out_channels}); PiX only reduces them"
        if conv.groups != 1:
            return f"it is a grouped convolution ({conv.groups} groups)"
        if is_strided(conv):
            return f"it strides ({'x'.join(map(str, conv.stride))}), and PiX keeps the resolution"
        if shape[2:] != before[2:]:
            return f"it changes the map from {_size(before)} to {_size(shape)}, and PiX keeps the resolution"
    if (reason := _against_batch(site.layer)) is not None:
        return reason
    for node in (site.layer, *site.removed):
        reason = survey.uneditable(site.region, node, replaces=node is site.layer)
        if reason is not None:
            return reason if node is site.layer else f"its {path_of(node)} cannot be removed: {reason}"
    return None


def _input(layer: fx.Node) -> fx.Node:
    return tensor_inputs(layer)[0]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[2:]))


def _against_batch(layer: fx.Node) -> str | None:
    """PiX averages over everything but the first dimension and the channels, image by image."""
    batched = is_batched(_input(layer))
    if batched is None:
        return "whether its first dimension is the batch is not known"
    return None if batched else "its first dimension is not the batch"


def _first_of_its_stage(candidate: SqueezeSite, sites: list[SqueezeSite]) -> bool:
    """Whether later blocks of the stage squeeze to this width: the equal-width 1x1 of a ResNet's very first block."""
    expanded = _expanded_width(candidate.last)
    return any(site.out_channels == candidate.out_channels and site.in_channels == expanded for site in sites if site.kind == "squeeze")


def _expanded_width(last: fx.Node) -> int | None:
    """The output width of the 1x1 convolution behind the spatial one that takes ``last``."""
    for user in follow(last, is_neutral):
        shape = shape_of(user)
        if is_spatial(user) and shape is not None:
            for expand in follow(tail_of(user).last, is_neutral):
                expanding = conv_of(expand)
                if expanding is not None and is_pointwise(expanding) and expanding.out_channels > shape[1]:
                    return expanding.out_channels
    return None


def _reduces_tokens(node: fx.Node) -> bool:
    linear, shape = linear_of(node), shape_of(node)
    return linear is not None and shape is not None and len(shape) > 2 and linear.in_features > linear.out_features


def _feed_forward_layers(region: Region, ends: set[fx.Node | None]) -> set[fx.Node]:
    """Second layers of feed-forward networks: pointwise, fed by a pointwise layer through an activation, back to the width they came from.

    They are among the last layers of residual branches, ``ends``.
    """
    found: set[fx.Node] = set()
    for node in region.nodes:
        widths = _pointwise_widths(node)
        if widths is None or node not in ends:
            continue
        first, between = feeding_layer(node)
        first_widths = None if first is None else _pointwise_widths(first)
        if first_widths == widths[::-1] and widths[0] > widths[1] and any(is_activation(step) for step in between):
            found.add(node)
    return found


def _pointwise_widths(node: fx.Node) -> tuple[int, int] | None:
    conv, linear = conv_of(node), linear_of(node)
    if linear is not None:
        return linear.in_features, linear.out_features
    if conv is not None and is_pointwise(conv) and conv.groups == 1 and not is_strided(conv):
        return conv.in_channels, conv.out_channels
    return None


def _last_layer(block: Block) -> fx.Node | None:
    layers = [node for node in block.branch if conv_of(node) is not None or linear_of(node) is not None]
    return layers[-1] if layers else None


def downscale_sites(survey: Survey, *, every: bool = False) -> tuple[list[DownscaleSite], list[Skip]]:
    """Every place where PiX can be put in front of a convolution, and the convolutions where it cannot.

    The stem is left alone: the convolution behind no other, at the network's input or, where only deeper parts could be traced, with as
    many input channels as an image has.

    Args:
        survey: of the network.
        every: give a reason for every convolution and linear layer, pointwise and depthwise ones included.
    """
    sites: list[DownscaleSite] = []
    skipped: list[Skip] = []
    for region in survey.regions:
        bottlenecks = dict(_bottlenecks(survey, region))
        first = stems(region.nodes, survey.input_size[0], whole=region.path == "")
        for node in region.nodes:
            site = _downscale_candidate(region, node, bottlenecks)
            if site is None:
                if every and (reason := _no_downscale(node)) is not None:
                    skipped.append(Skip(path_of(node), reason))
                continue
            if node in first:
                skipped.append(Skip(path_of(node), "it is the stem"))
                continue
            parts = [part for part in (node, site.expand) if part is not None]
            reasons = [_against_batch(part) for part in parts]
            reasons += [survey.uneditable(region, part, replaces=replaces) for part in parts for replaces in (True, False)]
            reason = next((reason for reason in reasons if reason is not None), None)
            if reason is not None:
                skipped.append(Skip(path_of(node), reason))
            else:
                sites.append(site)
    return sites, skipped


def _no_downscale(node: fx.Node) -> str | None:
    """Why a layer is not even a candidate; ``None`` for what is no layer."""
    conv = conv_of(node)
    if conv is None and linear_of(node) is None:
        return _no_layer(module_of(node))
    if conv is not None and is_depthwise(conv) and not is_pointwise(conv):
        return "it is depthwise; the pointwise convolution behind it is what shrinks"
    return "it works on pooled vectors, not on maps" if is_pooled(node) else "it is pointwise, and no depthwise convolution feeds it"


def _downscale_candidate(region: Region, node: fx.Node, bottlenecks: dict[fx.Node, fx.Node]) -> DownscaleSite | None:
    conv, linear = conv_of(node), linear_of(node)
    if conv is not None and not is_pointwise(conv):
        if is_depthwise(conv):
            return None
        expand = bottlenecks.get(node)
        return DownscaleSite(region, "plain" if expand is None else "bottleneck", node, conv.in_channels, 1, expand)
    if conv is None and linear is None:
        return None
    feeding, _ = feeding_layer(node)
    before = None if feeding is None else conv_of(feeding)
    if before is None or not is_depthwise(before) or is_pointwise(before):
        return None
    shape = shape_of(node)
    if shape is None or is_pooled(node) or (linear is not None and len(shape) < 3):
        return None
    in_channels = conv.in_channels if conv is not None else linear.in_features if linear is not None else 0
    return DownscaleSite(region, "depthwise-separable", node, in_channels, 1 if conv is not None else -1)


def _bottlenecks(survey: Survey, region: Region) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each bottleneck block's spatial convolution and the 1x1 that expands behind it, where only that 1x1 takes its output."""
    spaces = survey.spaces(region)
    for block in survey.blocks(region):
        if block.kind != "bottleneck":
            continue
        convs = [node for node in block.branch if conv_of(node) is not None and not is_pooled(node)]
        if len(convs) != 3:
            continue
        spatial, expand = convs[1], convs[2]
        conv = conv_of(spatial)
        space = spaces.after(spatial)
        readers = {member.path for member in space.members if member.side == "in"} - {path_of(expand)}
        gates = {member.path for member in space.members if member.side == "out"} - {path_of(spatial)}
        if conv is None or is_pointwise(conv) or is_depthwise(conv) or space.blockers or len(readers) > len(gates):
            continue
        yield spatial, expand


__all__ = ["DownscaleSite", "SqueezeSite", "downscale_sites", "squeeze_sites"]
