"""The channel spaces inside one residual branch, or one plain block: what has to become narrower with it.

Seen from the whole network, the channels that a branch begins and ends with belong to its stage and cannot go. Seen from inside, they
are just the first and the last of its spaces. A branch that gets a narrow tensor, and may give a narrow one, can be made narrow all the way
through. Here parameters that no layer holds count too, such as the scale that ends a ConvNeXt block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from chansurg.surgery.edits.places import join_path
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey.blocks import Block
from chansurg.surgery.survey.channels import ChannelSpaces, Member, Space
from chansurg.surgery.survey.kinds import function_name, is_elementwise, module_of, path_of, shape_of, tensor_inputs
from chansurg.surgery.survey.regions import Region

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


def branch_spaces(block: Block, region: Region) -> BranchSpaces:
    """The spaces of a block's branch.

    Args:
        block: whose branch is closed: what is computed in it is read in it, or by its exit.
        region: that it lies in.
    """
    shape = shape_of(block.entry)
    axes = (1,) if shape is None or len(shape) < 3 else (1, -1)
    found = [_spaces(block, region, axis) for axis in axes]
    return next((spaces for spaces in found if spaces.blocker is None), found[0])


def _spaces(block: Block, region: Region, axis: int) -> BranchSpaces:
    last = next(node for node in reversed(block.branch) if block.exit in (node, *node.users))
    inside = {*block.branch, block.exit}
    spaces = _BranchChannels(block, axis, region)
    entry, exit_space = spaces.after(block.entry), spaces.after(last)
    interior = [space for space in spaces.every() if space is not entry and space is not exit_space]
    open_ends = [node for node in block.branch if node is not block.exit and any(user not in inside for user in node.users)]
    if open_ends:
        exit_space.blockers.append(f"what {path_of(open_ends[0])} computes is read outside of the block too")
    return BranchSpaces(axis, entry, exit_space, tuple(interior))


class _BranchChannels(ChannelSpaces):
    """Channel spaces of a branch alone, whose input may have any width."""

    def __init__(self, block: Block, axis: int, region: Region) -> None:
        self._entry, self._entry_axis = block.entry, axis
        self._region = region
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
        if module_of(node) is not None or shape is None or axis is None:
            return
        for source in node.all_input_nodes:
            if tensor_inputs(source):
                continue
            if not _lies_along(shape_of(source), axis % len(shape) - len(shape)):
                self._block([node], f"what it is combined with at {path_of(node)} does not lie along its channels")
            for held in self._held(source, shape[axis]):
                tensor = None if held is None else self._tensor(held)
                if held is None or tensor is None or (tensor.numel() > 1 and not isinstance(tensor, nn.Parameter)):
                    self._block([node], f"it is combined with a constant at {path_of(node)}")
                elif tensor.numel() > 1:
                    path = join_path(self._region.path, str(held.target))
                    self._members.append((node, Member(path, "parameter", held)))

    def _held(self, node: fx.Node, channels: int) -> Iterator[fx.Node | None]:
        """The tensors of modules that a constant expression is made of; ``None`` for a part that would not fit another width."""
        if node.op == "get_attr":
            yield node
            return
        if not (is_elementwise(node) or (function_name(node) in _SHAPING and _fits_any_width(node, channels))):
            yield None
        for source in node.all_input_nodes:
            yield from self._held(source, channels)

    def _tensor(self, node: fx.Node) -> torch.Tensor | None:
        owner, _, name = str(node.target).rpartition(".")
        found = getattr(self._region.root.get_submodule(owner), name, None)
        return found if isinstance(found, torch.Tensor) else None


def _fits_any_width(node: fx.Node, channels: int) -> bool:
    """Whether a reshape names no number of channels."""
    sizes = [size for arg in node.args[1:] for size in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    return function_name(node) == "unsqueeze" or channels == 1 or channels not in sizes


def _lies_along(shape: tuple[int, ...] | None, dim: int) -> bool:
    """Whether a tensor has no dimension of more than one entry but ``dim``, counted from behind."""
    return shape is not None and all(size == 1 or place == dim for place, size in enumerate(shape, -len(shape)))
