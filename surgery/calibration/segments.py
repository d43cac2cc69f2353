"""Cutting two networks, the original and what it was converted to, into segments that belong together.

A cut is a tensor that all that comes later depends on, and on nothing else: the end of a block, a map between two plain layers. Surgery
keeps the names of calls, so a cut of one network is found in the other; a block's end is the same block's end even where a layer of a
recipe has taken the addition's place. A block that works on few channels can do little by itself, so it makes one segment with the block
before it; and what goes into the last layer of all matters only as far as it shows in the output, so that layer makes one with what comes
before it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from chansurg.surgery.calibration.kept import Kept
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey import Block, Region, Survey
from chansurg.surgery.survey.kinds import (
    conv_of,
    is_addition,
    is_batched,
    is_elementwise,
    linear_of,
    module_of,
    path_of,
    shape_of,
    tensor_inputs,
)


@dataclass(frozen=True)
class Part:
    """A run of one network's graph, from one tensor to another.

    Args:
        entry: the node whose output the run starts from.
        exit: the node whose output it ends with.
        nodes: those to run, in order, with what they need of constants and parameters; neither ``entry`` nor an output node.
    """

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Segment:
    """What belongs together in the two networks.

    Args:
        path: what to call it: where it ends.
        original: the original's part.
        converted: the converted network's part.
        channels: which channels of the original's exit the converted network's are, along ``axis``; ``None`` is all.
        axis: the channel axis of the exit.
        partners: nodes of the original for nodes of the converted part; a block's closing node has that of the last block in the segment
            that ends there.
    """

    path: str
    original: Part
    converted: Part
    channels: tuple[int, ...] | None
    axis: int
    partners: dict[fx.Node, fx.Node]


def segments(original: Survey, converted: Survey, theirs: Region, ours: Region, kept: Kept) -> list[Segment]:
    """The segments of a region, from its input to its output; empty where there is nothing to compare.

    Args:
        original: survey of the original.
        converted: survey of the converted network.
        theirs: the original's region.
        ours: the same region of the converted network.
        kept: which channels are left of the original's.
    """
    partners = _partners(original, converted, theirs, ours)
    their_cuts, our_cuts = _cuts(theirs), _cuts(ours)
    thin = [block for block in converted.blocks(ours) if isinstance(module_of(block.exit), RecipeLayer)]
    found: list[Segment] = []
    begin: tuple[fx.Node, fx.Node] | None = None
    known = {ours_: theirs_ for ours_, theirs_ in partners.items() if ours_ in our_cuts and theirs_ in their_cuts}
    places = [(mine, known[mine]) for mine in our_cuts if mine in known]
    # With several inputs, none of them is all that a region starts from; and what was traced without numbers cannot be run on some.
    if not places or places[0][0].op != "placeholder" or any(map(_is_without_numbers, (theirs, ours))):
        return []
    for number, (mine, its) in enumerate(places):
        if begin is None:
            begin = its, mine
            continue
        last = number == len(places) - 1
        following = None if last else places[number + 1][0]
        if following is not None and not _layers_between(ours, mine, following):
            continue  # the cut behind what works on single elements is the better one
        if not last and (any(block.entry is mine for block in thin) or _layers_between(ours, mine, places[-1][0]) == 1):
            continue
        selection = kept.at(theirs, its, mine)
        if selection is None:
            continue
        parts = _part(theirs, begin[0], its), _part(ours, begin[1], mine)
        found.append(Segment(path_of(mine), *parts, *selection, _closing(parts[1], partners, thin)))
        begin = its, mine
    return found


def joined(cut: Sequence[Segment]) -> Segment:
    """All segments of a region as one."""
    last = cut[-1]
    partners = {mine: its for segment in cut for mine, its in segment.partners.items()}
    parts = _chained([segment.original for segment in cut]), _chained([segment.converted for segment in cut])
    return Segment(last.path, *parts, last.channels, last.axis, partners)


def _chained(parts: Sequence[Part]) -> Part:
    return Part(parts[0].entry, parts[-1].exit, tuple(dict.fromkeys(node for part in parts for node in part.nodes)))


def _partners(original: Survey, converted: Survey, theirs: Region, ours: Region) -> dict[fx.Node, fx.Node]:
    """For nodes of the converted network, the original's that computed the same: by address, and blocks' ends by the block's path."""
    by_address = {node.meta["address"]: node for node in theirs.nodes if "address" in node.meta}
    partners = {node: by_address[address] for node in ours.nodes if (address := node.meta.get("address")) in by_address}
    ends = [{}, {}]  # type: list[dict[str, list[fx.Node]]]
    for found, survey, region in zip(ends, (original, converted), (theirs, ours), strict=True):
        for block in survey.blocks(region):
            found.setdefault(block.path, []).append(block.exit)
    for path, exits in ends[1].items():
        if len(exits) == len(ends[0].get(path, ())):
            partners.update(zip(exits, ends[0][path], strict=True))
    # Arguments that are no tensors have no shape, and their values are written into the graph.
    inputs = [[node for node in region.nodes if node.op == "placeholder" and shape_of(node) is not None] for region in (ours, theirs)]
    if len(inputs[0]) == len(inputs[1]) == 1:
        partners[inputs[0][0]] = inputs[1][0]
    outputs = [_output(region) for region in (ours, theirs)]
    if outputs[0] is not None and outputs[1] is not None:
        partners[outputs[0]] = outputs[1]
    return partners


def is_constant(target: str) -> bool:
    """Whether a graph reads a tensor that its code makes, by the name that torch.fx gives it."""
    return target.startswith("_tensor_constant")


def _is_without_numbers(region: Region) -> bool:
    """Whether the region's code makes a tensor that the trace has the shape of, and nothing else."""
    made = [str(node.target) for node in region.nodes if node.op == "get_attr" and is_constant(str(node.target))]
    return any(getattr(region.root, name).is_meta for name in made)


def _output(region: Region) -> fx.Node | None:
    """The one tensor that a region puts out."""
    result = next((node.args[0] for node in region.nodes if node.op == "output"), None)
    return result if isinstance(result, fx.Node) else None


def _cuts(region: Region) -> list[fx.Node]:
    """Tensors that all that comes later depends on, and on no other, in order; the input comes first, and the output last."""
    order = {node: index for index, node in enumerate(region.nodes)}
    moving = _moving(region)
    last = {node: max((order[user] for user in node.users), default=order[node]) for node in moving}
    live: set[fx.Node] = set()
    cuts: list[fx.Node] = []
    for node in region.nodes:
        if node.op == "output":
            break
        if node not in moving:
            continue
        live = {other for other in live if last[other] > order[node]} | ({node} if last[node] > order[node] else set())
        if live == {node} and shape_of(node) is not None and is_batched(node) is not False:
            cuts.append(node)
    return cuts


def _moving(region: Region) -> set[fx.Node]:
    """Nodes that depend on the region's input."""
    moving: set[fx.Node] = set()
    for node in region.nodes:
        if node.op == "placeholder" or any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    return moving


def _part(region: Region, entry: fx.Node, exit_node: fx.Node) -> Part:
    """Everything behind ``entry`` up to ``exit_node``; calls that only write into a tensor have no reader, and are there too."""
    order = {node: index for index, node in enumerate(region.nodes)}
    between = {node for node in region.nodes if order[entry] < order[node] <= order[exit_node]}
    moving = _moving(region)
    wanted = set(between)
    queue = list(between)
    while queue:
        constants = [source for source in queue.pop().all_input_nodes if source not in wanted and source not in moving]
        wanted.update(constants)
        queue.extend(constants)
    return Part(entry, exit_node, tuple(node for node in region.nodes if node in wanted and node.op not in ("placeholder", "output")))


def _layers_between(region: Region, first: fx.Node, last: fx.Node) -> int:
    return sum(1 for node in _part(region, first, last).nodes if is_layer(node))


def is_layer(node: fx.Node) -> bool:
    """Whether the node calls a convolution, a linear layer, or a layer of a recipe that does the work of one."""
    return conv_of(node) is not None or linear_of(node) is not None or isinstance(module_of(node), RecipeLayer)


def _closing(part: Part, partners: dict[fx.Node, fx.Node], thin: Sequence[Block]) -> dict[fx.Node, fx.Node]:
    """The partners of a part's nodes; the end of a block that thin ones follow has the partner of the last thin one's end."""
    found = {node: partners[node] for node in part.nodes if node in partners}
    inside = [block for block in thin if block.exit in found]
    if inside:
        before: fx.Node | None = inside[0].entry
        while before is not None and before in part.nodes and not is_addition(before):
            sources = tensor_inputs(before)
            before = sources[0] if len(sources) == 1 and is_elementwise(before) else None
        if before in found:
            found[before] = found[inside[-1].exit]
    return found
