"""The channel spaces inside one residual branch, or one plain block: what has to become narrower with it.

Seen from the whole network, the channels that a branch begins and ends with belong to its stage and cannot go. Seen from inside, they
are just the first and the last of its spaces. A branch that gets a narrow tensor, and may give a narrow one, can be made narrow all the way
through. Here parameters that no layer holds count too, such as the scale that ends a ConvNeXt block.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from chansurg.surgery.edits.places import join_path
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey.blocks import Block
from chansurg.surgery.survey.channels import ChannelSpaces, Member, Space
from chansurg.surgery.survey.kinds import conv_of, function_name, is_activation, linear_of, module_of, path_of, shape_of, tensor_inputs

_SHAPING = frozenset(("view", "reshape", "unsqueeze"))
_REDUCING = frozenset(("mean", "sum", "amax", "amin", "norm"))


@dataclass(frozen=True)
class BranchSpaces:
    """The spaces of a branch.

    Args:
        axis: where the channels of the branch's input lie: 1, or -1.
        entry: the channels that go into it.
        exit: the channels that come out of it; the same object as ``entry`` where no layer in it makes channels of its own.
        interior: those between.
    """

    axis: int
    entry: Space
    exit: Space
    interior: tuple[Space, ...]

    @property
    def all(self) -> tuple[Space, ...]:
        """Every space once."""
        return (self.entry, *self.interior) if self.exit is self.entry else (self.entry, *self.interior, self.exit)

    @property
    def blocker(self) -> str | None:
        """Why the branch cannot become narrow, or ``None``."""
        return next((reason for space in self.all for reason in space.blockers), None)


def branch_spaces(block: Block, region_path: str) -> BranchSpaces:
    """The spaces of a block's branch.

    Args:
        block: whose branch is closed: what is computed in it is read in it, or by its exit.
        region_path: of the region that it lies in.
    """
    shape = shape_of(block.entry)
    axes = (1,) if shape is None or len(shape) < 3 else (1, -1)
    found = [_spaces(block, region_path, axis) for axis in axes]
    return next((spaces for spaces in found if spaces.blocker is None), found[0])


def _spaces(block: Block, region_path: str, axis: int) -> BranchSpaces:
    last = next(node for node in reversed(block.branch) if block.exit in (node, *node.users))
    inside = {*block.branch, block.exit}
    spaces = _BranchChannels(block, axis, region_path)
    entry, exit_space = spaces.after(block.entry), spaces.after(last)
    interior = [space for space in spaces.every() if space is not entry and space is not exit_space]
    open_ends = [node for node in block.branch if node is not block.exit and any(user not in inside for user in node.users)]
    if open_ends:
        exit_space.blockers.append(f"what {path_of(open_ends[0])} computes is read outside of the block too")
    return BranchSpaces(axis, entry, exit_space, tuple(interior))


class _BranchChannels(ChannelSpaces):
    """Channel spaces of a branch alone, whose input may have any width."""

    def __init__(self, block: Block, axis: int, region_path: str) -> None:
        self._entry, self._entry_axis = block.entry, axis
        self._region_path = region_path
        super().__init__([block.entry, *block.branch])

    def _visit(self, node: fx.Node) -> None:
        if node is self._entry:
            self._axis[node] = self._entry_axis
            return
        foreign = [s for s in tensor_inputs(node) if s not in self._parent and (tensor_inputs(s) or s.op == "placeholder")]
        sources = [source for source in node.all_input_nodes if source in self._parent]
        if foreign:
            self._block([node, *sources], f"{path_of(node)} also reads what is computed outside of the block")
        elif not tensor_inputs(node):
            self._parent.pop(node)  # a constant, or a parameter in another shape
        elif isinstance(module_of(node), RecipeLayer) and len(sources) == 1 and hasattr(module_of(node), "out_channels"):
            self._axis[node] = self._axis.get(sources[0], 1)
            self._members.append((sources[0], Member(path_of(node), "in", node)))
            self._members.append((node, Member(path_of(node), "out", node)))
        elif function_name(node) in _REDUCING and sources and self._reduces(node, sources[0]):
            return
        elif function_name(node) == "addcmul":
            self._elementwise(node, sources)
        else:
            super()._visit(node)
            if is_activation(node) and any(p.numel() > 1 for p in _parameters(module_of(node))):
                self._members.append((node, Member(path_of(node), "both", node)))
        self._parameters_of(node)

    def _reduces(self, node: fx.Node, source: fx.Node) -> bool:
        """A reduction that keeps its dimensions, over positions or over the channels; the latter's result has none."""
        before, after, axis = shape_of(source), shape_of(node), self._axis.get(source)
        if before is None or after is None or axis is None or len(before) != len(after):
            return False
        self._axis[node] = axis
        if after[axis] == before[axis]:
            self._join(node, source)
        return after[axis] in (before[axis], 1)

    def _parameters_of(self, node: fx.Node) -> None:
        """Take the parameters that an elementwise operation combines channels with into the space, where they have one entry for each."""
        shape, axis = shape_of(node), self._axis.get(node)
        if conv_of(node) is not None or linear_of(node) is not None or shape is None or axis is None or module_of(node) is not None:
            return
        for source in node.all_input_nodes:
            held = source
            if tensor_inputs(source):
                continue
            while function_name(held) in _SHAPING and held.all_input_nodes and _fits_any_width(held, shape[axis]):
                held = held.all_input_nodes[0]
            if held.op == "get_attr" and set(shape_of(held) or ()) <= {1}:
                continue
            if held.op == "get_attr":
                path = join_path(self._region_path, str(held.target))
                self._members.append((node, Member(path, "parameter", held)))
            elif shape_of(source) not in (None, ()):
                self._block([node], f"it is combined with a constant at {path_of(node)}")


def _fits_any_width(node: fx.Node, channels: int) -> bool:
    """Whether a reshape names no number of channels."""
    sizes = [size for arg in node.args[1:] for size in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    return function_name(node) == "unsqueeze" or channels == 1 or channels not in sizes


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
