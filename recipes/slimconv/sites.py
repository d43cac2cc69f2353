"""Where SlimConv goes: every spatial convolution but the stem whose output can shrink, and the reason for every other.

What a slim convolution puts out has fewer channels, in another order. So nothing may be added to it or joined with it but what shrinks
along, and everything that reads it has to be a layer that can be narrowed, or another slim convolution. A depthwise convolution, whose
output channels are otherwise those of its input, gets output channels of its own.

Source: SlimConv, Sec. III-B and IV-A, Figure 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx, nn

from chansurg.recipes.slimconv.layer import SlimConv
from chansurg.surgery.editing.narrowing import reason_against, reason_against_touching
from chansurg.surgery.plan import Site, Skip
from chansurg.surgery.survey import Region, Survey
from chansurg.surgery.survey.chains import stems
from chansurg.surgery.survey.channels import ChannelSpaces, Member, Space
from chansurg.surgery.survey.kinds import (
    conv_of,
    is_batched,
    is_depthwise,
    is_pointwise,
    is_pooled,
    linear_of,
    module_of,
    path_of,
    tensor_inputs,
)


@dataclass(frozen=True)
class SlimSite:
    """A spatial convolution that SlimConv can take the place of.

    Args:
        layer: the convolution.
        members: the other layers that shrink with its output: norms, and what reads it.
    """

    region: Region
    layer: fx.Node
    members: tuple[Member, ...]

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution, on the meta device."""
        conv = conv_of(self.layer)
        assert isinstance(conv, nn.Conv2d)
        return conv

    def describe(self) -> Site:
        """The site as plain data."""
        conv = self.conv
        kind = "depthwise" if is_depthwise(conv) else "grouped" if conv.groups > 1 else "convolution"
        kernel = "x".join(map(str, conv.kernel_size))
        return Site(path_of(self.layer), kind, {"in_channels": conv.in_channels, "out_channels": conv.out_channels, "kernel": kernel})


def slim_sites(survey: Survey, *, every: bool = False, without: Collection[str] = ()) -> tuple[list[SlimSite], list[Skip]]:
    """Every place for a slim convolution, in the order in which they run, and the spatial convolutions that are none.

    Args:
        survey: of the network.
        every: give a reason for every convolution and linear layer, pointwise ones included.
        without: paths of convolutions that stay as they are, whatever speaks for them; they are not mentioned.
    """
    sites: list[SlimSite] = []
    skipped: list[Skip] = []
    for region in survey.regions:
        stem = _stem(survey, region)
        candidates: list[fx.Node] = []
        reasons: dict[fx.Node, str] = {}
        for node in region.nodes:
            if _is_spatial(node):
                reason = "it is the stem" if node in stem else _against_layer(survey, region, node)
                if reason is None and path_of(node) not in without:
                    candidates.append(node)
            else:
                reason = _no_candidate(node) if every else None
            if reason is not None:
                reasons[node] = reason
        # What one cannot do decides for others: a depthwise convolution that stays ties its output to its input.
        while True:
            spaces = ChannelSpaces(region.nodes, dividing=[node for node in candidates if is_depthwise(_conv(node))])
            behind = {node: spaces.after(node) for node in candidates}
            refused = {node: reason for node in behind if (reason := _against_space(survey, region, node, behind)) is not None}
            if not refused:
                break
            reasons |= refused
            candidates = [node for node in candidates if node not in refused]
        for node in region.nodes:
            if node in behind:
                members = tuple(member for member in behind[node].members if member.node is not node)
                sites.append(SlimSite(region, node, members))
            elif node in reasons:
                skipped.append(Skip(path_of(node), reasons[node]))
    return sites, skipped


def _conv(node: fx.Node) -> nn.Module:
    conv = conv_of(node)
    assert conv is not None
    return conv


def _stem(survey: Survey, region: Region) -> set[fx.Node]:
    """The first convolution; in a residual network every full one in a chain up to the first block (Table III's DLA-46-C counts so)."""
    found = stems(region.nodes, survey.input_size[0], whole=region.path == "")
    order = {node: index for index, node in enumerate(region.nodes)}
    entries = [block.entry for block in survey.blocks(region)]
    if not found or not entries:
        return found
    node, chain = min(entries, key=order.__getitem__), set()
    while True:
        conv = conv_of(node)
        if conv is not None and conv.groups == 1:
            chain.add(node)
        ahead = tensor_inputs(node)
        if len(ahead) != 1:
            break
        node = ahead[0]
    # Where branches meet ahead of the first block, more than a stem is there.
    return found | chain if node.op == "placeholder" else found


def _is_spatial(node: fx.Node) -> bool:
    conv = conv_of(node)
    return conv is not None and not is_pointwise(conv)


def _no_candidate(node: fx.Node) -> str | None:
    """Why nobody would take a layer that is no spatial convolution for a site; ``None`` for what is no layer."""
    if conv_of(node) is not None:
        return "it is pointwise, and a slim convolution takes the place of a spatial one"
    if linear_of(node) is not None:
        return "it is a linear layer"
    module = module_of(node)
    if isinstance(module, SlimConv):
        return "a slim convolution is here already"
    return "it is a transposed convolution" if isinstance(module, nn.modules.conv._ConvTransposeNd) else None


def _against_layer(survey: Survey, region: Region, node: fx.Node) -> str | None:
    """Why a spatial convolution cannot be replaced, whatever is behind it."""
    conv = conv_of(node)
    if not tensor_inputs(node):
        return "what goes into it does not depend on the image"
    if is_pooled(node):
        return "it works on pooled vectors, not on maps"
    batched = is_batched(tensor_inputs(node)[0])
    if batched is not True:
        return "whether its first dimension is the batch is not known" if batched is None else "its first dimension is not the batch"
    reason = survey.uneditable(region, node, replaces=True) or reason_against_touching(survey.original.get_submodule(path_of(node)))
    if reason is None and type(conv) is not nn.Conv2d:
        reason = f"it is a {type(conv).__name__}, and a slim convolution stands in for a plain Conv2d"
    return reason


def _against_space(survey: Survey, region: Region, node: fx.Node, behind: Mapping[fx.Node, Space]) -> str | None:
    """Why what a convolution puts out cannot shrink; ``behind`` has the space behind every candidate."""
    space = behind[node]
    if space.blockers:
        return f"its output cannot shrink: {space.blockers[0]}"
    for member in space.members:
        if member.node is node and member.side == "out":
            continue
        # The last layer of squeeze-and-excitation works on pooled vectors, and shrinks along.
        if member.side == "out" and not is_pooled(member.node):
            return "its output is added to that of other layers (a shortcut, or another branch)"
        if member.side == "in" and member.node in behind:
            continue
        original = survey.original.get_submodule(member.path)
        reason = survey.uneditable(region, member.node, replaces=True) or reason_against(original, None, None)
        if reason is not None:
            return f"{member.path}, which takes its output, cannot become narrower: {reason}"
    return None
