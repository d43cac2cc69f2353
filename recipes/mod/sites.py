"""Which blocks can work on a selection of their channels, and which cannot, with the reason.

A block is a residual block, or a plain one in a network without any. Its branch has to be closed (nobody else reads what it computes), its
input has to pass it by unchanged, and one module's code has to see both where the branch begins and where it ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import fx, nn

from chansurg.surgery.edits import Address
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.slicing.nodes import shares_storage
from chansurg.surgery.survey import Block, Region, Survey
from chansurg.surgery.survey.blocks import Stage
from chansurg.surgery.survey.branch import BranchSpaces, branch_spaces
from chansurg.surgery.survey.kinds import (
    conv_of,
    function_name,
    is_batched,
    is_elementwise,
    is_neutral,
    is_norm,
    is_pointwise,
    is_pooled,
    is_pooling,
    linear_of,
    module_of,
    path_of,
    shape_of,
    tensor_inputs,
)
from chansurg.surgery.survey.meeting import seen_from


class NoSite(Exception):
    """A block that stays as it is; the message is the reason."""


@dataclass(frozen=True)
class NumberedStage:
    """A stage with its number in the network, from 1, and the region it lies in."""

    number: int
    region: Region
    stage: Stage


@dataclass(frozen=True)
class BlockSite:
    """A block that can work on a selection of its channels.

    Args:
        region: where it is.
        block: what it is.
        spaces: what becomes narrow with it.
        into: the calls that its branch begins with.
        closes: the call that the branch ends with.
        passing: which operand of the addition ``closes`` passes by; ``None`` in a plain block.
        in_channels: of its input, ``C``.
        inplace: nobody reads its input afterwards.
        rectified: its input comes out of a ReLU.
    """

    region: Region
    block: Block
    spaces: BranchSpaces
    into: tuple[Address, ...]
    closes: Address
    passing: int | None
    in_channels: int
    inplace: bool
    rectified: bool

    @property
    def channel_dim(self) -> int:
        """Where the channels of its input lie: 1, or -1."""
        return self.spaces.axis


def numbered_stages(survey: Survey) -> list[NumberedStage]:
    """The stages of all regions."""
    found = [(region, stage) for region in survey.regions for stage in survey.stages(region)]
    return [NumberedStage(number, region, stage) for number, (region, stage) in enumerate(found, 1)]


def first_width(stages: Sequence[NumberedStage]) -> int:
    """The input channels of the network's first block (CNN MoD, Section 3.2).

    A plain network's first block may be the stem, whose input is the image; there it is the channels that the first convolution puts out.
    """
    region, stage = stages[0].region, stages[0].stage
    if stage.blocks[0].kind == "plain":
        return next(conv.out_channels for node in region.nodes if (conv := conv_of(node)) is not None)
    first = conv_of(stage.opening[0]) if stage.opening else None
    if first is not None:
        return first.in_channels
    shape = shape_of(stage.blocks[0].entry)
    assert shape is not None
    return shape[branch_spaces(stage.blocks[0], region).axis]


def block_site(survey: Survey, region: Region, block: Block) -> BlockSite:
    """The site that a block is.

    Raises:
        NoSite: where it is none.
    """
    if is_routed(block):
        raise NoSite("it is a Mixture-of-Depths block already")
    if block.kind == "attention":
        raise NoSite("it is an attention block")
    if not any(_is_spatial(node) for node in block.branch):
        raise NoSite("it has no spatial convolution")
    if (between := next((node for node in block.shortcut if not is_neutral(node)), None)) is not None:
        raise NoSite(f"its input does not pass it by unchanged: {path_of(between)} is in the way")
    shape = shape_of(block.entry)
    if shape is None:
        raise NoSite("its shapes are not known")
    if is_batched(block.entry) is not True:
        known = is_batched(block.entry) is False
        raise NoSite("its first dimension is not the batch" if known else "whether its first dimension is the batch is not known")
    if shape[1:] != block.shape:
        raise NoSite(f"it takes {_size(shape[1:])} and puts out {_size(block.shape)}")
    spaces = branch_spaces(block, region)
    if spaces.blocker is not None:
        raise NoSite(f"its branch cannot become narrow: {spaces.blocker}")
    closes, into = _calls(survey, region, block)
    return BlockSite(
        region=region,
        block=block,
        spaces=spaces,
        into=into,
        closes=closes,
        passing=_passing(block),
        in_channels=shape[spaces.axis],
        inplace=_is_read_by_nobody_else(region, block),
        rectified=_comes_out_of_a_relu(block.entry),
    )


def is_routed(block: Block) -> bool:
    """Whether a recipe's layer ends it, in the place of an addition."""
    return isinstance(module_of(block.exit), RecipeLayer)


def _is_spatial(node: fx.Node) -> bool:
    if isinstance(module := module_of(node), RecipeLayer):
        return any(isinstance(part, nn.modules.conv._ConvNd) and not is_pointwise(part) for part in module.modules())
    conv = conv_of(node)
    return conv is not None and not is_pointwise(conv) and not is_pooled(node)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _passing(block: Block) -> int | None:
    if block.kind == "plain":
        return None
    operands = block.exit.args
    if len(operands) != 2 or block.exit.kwargs:
        raise NoSite(f"its addition at {path_of(block.exit)} does more than add two tensors")
    return 0 if operands[1] in block.branch else 1


def _calls(survey: Survey, region: Region, block: Block) -> tuple[Address, tuple[Address, ...]]:
    """The call that the branch ends with, and those it begins with, all made by one module."""
    closes = block.exit.meta.get("address")
    if not isinstance(closes, Address):
        raise NoSite("where its branch ends is no call")
    into: dict[Address, None] = {}
    for node in block.entry.users:
        seen = seen_from(region, closes.owner, node) if closes.owner in node.meta["owners"] else None
        if node in block.branch:
            if seen is None or seen[1] is not block.entry:
                raise NoSite(f"the code of {closes.owner or 'the network'} does not see what goes into {path_of(node)}")
            into[seen[0]] = None
    for node in block.entry.users:
        seen = seen_from(region, closes.owner, node) if closes.owner in node.meta["owners"] else None
        if node not in block.branch and seen is not None and seen[0] in into:
            raise NoSite(f"{seen[0].path} reads its input for something else too")
    for address in (closes, *into):
        if (reason := survey.unrewritable(region, address)) is not None:
            raise NoSite(reason)
    return closes, tuple(into)


def _is_read_by_nobody_else(region: Region, block: Block) -> bool:
    """Whether nothing reads the memory of the block's input once the block is through, so that its result may be written there."""
    if block.kind == "plain" and is_neutral(block.exit):
        return False
    order = {node: number for number, node in enumerate(region.nodes)}
    family = {block.entry}
    root = block.entry
    while _may_share(root):
        root = root.all_input_nodes[0]
        family.add(root)
    if not _makes_new_memory(root):
        return False
    queue = list(family)
    while queue:
        for user in queue.pop().users:
            if user not in family and user is not block.exit and _may_lie_in(user, family):
                family.add(user)
                queue.append(user)
    return all(order[user] <= order[block.exit] for node in family for user in node.users)


def _may_share(node: fx.Node) -> bool:
    """Whether what a node puts out may lie where its first input lies."""
    module = module_of(node)
    return bool(node.all_input_nodes) and (shares_storage(node) or (isinstance(module, RecipeLayer) and module.adds))


def _may_lie_in(node: fx.Node, family: Collection[fx.Node]) -> bool:
    """Whether what a node puts out may share memory with what it reads of a family; where the operation is not known, it may."""
    if _may_share(node):
        return node.all_input_nodes[0] in family
    is_tensor = shape_of(node) is not None or "shapes" in node.meta
    return is_tensor and not (_makes_new_memory(node) or function_name(node) in ("cat", "stack", "mean", "sum"))


def _makes_new_memory(node: fx.Node) -> bool:
    layer = conv_of(node) is not None or linear_of(node) is not None
    return layer or is_norm(node) or is_elementwise(node) or is_pooling(node)


def _comes_out_of_a_relu(node: fx.Node) -> bool:
    for reached in _back_through_pooling(node):
        module = module_of(reached)
        part = getattr(module, "act", None) if is_norm(reached) else module
        if isinstance(part, (nn.ReLU, nn.ReLU6)) or function_name(reached) in ("relu", "relu6"):
            return True
    return False


def _back_through_pooling(node: fx.Node) -> Iterator[fx.Node]:
    yield node
    while (is_neutral(node) or is_pooling(node)) and tensor_inputs(node):
        node = tensor_inputs(node)[0]
        yield node
