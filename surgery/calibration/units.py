"""What can be fitted in a segment: its convolutions and linear layers, each with the norm behind it, and what each is to put out.

A layer is to give what the original's layer of the same name gives, as far as its channels are still there. The one that closes a block is
to give what the original's block ends with, less what the converted network's shortcut has to say: so it makes up for what is lost before
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from chansurg.surgery.calibration.closing import Closing, closing
from chansurg.surgery.calibration.kept import Indices, Kept
from chansurg.surgery.calibration.moments import Linear
from chansurg.surgery.calibration.segments import Segment
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey import Region
from chansurg.surgery.survey.kinds import path_of


@dataclass(frozen=True)
class Unit:
    """One layer to be fitted.

    Args:
        node: the converted network's call of it.
        layers: the layer itself; of a recipe's layer those inside that make up what it puts out, one after another along the channels.
        norm: the batch norm that works on what it puts out and on nothing else.
        norm_path: its path.
        target: the original's node that it is to give.
        channels: which of that node's channels, along ``axis``; ``None`` is all.
        axis: the channel axis.
        closing: where the target is a block's end: how the output gets there, through an addition whose other side is taken off the target.
        until: the later of the call and that other side.
    """

    node: fx.Node
    layers: tuple[Linear, ...]
    norm: nn.modules.batchnorm._BatchNorm | None
    norm_path: str | None
    target: fx.Node
    channels: Indices | None
    axis: int
    closing: Closing | None
    until: fx.Node

    @property
    def path(self) -> str:
        """The layer's path."""
        return path_of(self.node)


def units(network: nn.Module, theirs: Region, segment: Segment, kept: Kept) -> list[Unit]:
    """The units of a segment's converted part, in order of execution.

    Args:
        network: the converted network, with its numbers.
        theirs: the original's region.
        segment: both parts.
        kept: which channels are left of the original's.
    """
    part, found = segment.converted, []
    for node in part.nodes:
        layers = _layers(network, node)
        if not layers or _called(part.nodes, node) != 1:
            continue
        norm, tail = _norm_behind(network, node)
        closed = closing(part.nodes, tail)
        if closed is not None and closed.addition not in segment.partners:
            closed = None
        goal = tail if closed is None else closed.addition
        partner = segment.partners.get(goal)
        if partner is None or partner not in segment.original.nodes:
            continue
        selection = kept.at(theirs, partner, goal)
        if selection is not None:
            until = node
            if closed is not None and closed.other in part.nodes and part.nodes.index(closed.other) > part.nodes.index(node):
                until = closed.other
            found.append(Unit(node, layers, norm, None if norm is None else path_of(tail), partner, *selection, closed, until))
    return found


def _called(nodes: tuple[fx.Node, ...], node: fx.Node) -> int:
    return sum(1 for other in nodes if other.op == "call_module" and other.target == node.target)


def _layers(network: nn.Module, node: fx.Node) -> tuple[Linear, ...]:
    if node.op != "call_module":
        return ()
    module = network.get_submodule(path_of(node))
    inside = [module.get_submodule(name) for name in module.last_layers()] if isinstance(module, RecipeLayer) else [module]
    found = tuple(layer for layer in inside if isinstance(layer, nn.Conv2d | nn.Linear) and _is_plain(layer))
    return found if len(found) == len(inside) else ()


def _is_plain(layer: nn.Module) -> bool:
    """Whether its weight is a parameter of its own, and not computed from others."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


def _norm_behind(network: nn.Module, node: fx.Node) -> tuple[nn.modules.batchnorm._BatchNorm | None, fx.Node]:
    """The batch norm that is the only reader, and the last of the two nodes."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if reader is None or reader.op != "call_module":
        return None, node
    module = network.get_submodule(path_of(reader))
    plain = type(module).forward is nn.modules.batchnorm._BatchNorm.forward
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and plain and module.affine and module.track_running_stats:
        return module, reader
    return None, node
