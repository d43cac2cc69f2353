"""Residual blocks and stages, found in the graph and not by names.

An addition of two tensors of one shape closes a block; the node through which everything must pass to reach both of them (their nearest
common dominator) opens it. The side with fewer layers is the shortcut. Consecutive blocks with one output width and resolution make a
stage. The block that a stage begins with may have no addition, since it changes the width or the resolution: it is told by its layers,
which are of the same kinds as those of the block behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn

from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey.kinds import (
    conv_of,
    is_addition,
    is_depthwise,
    is_pointwise,
    is_pooled,
    linear_of,
    module_of,
    path_of,
    shape_of,
    tensor_inputs,
)


@dataclass(frozen=True)
class Block:
    """A residual block.

    Args:
        path: path of the module whose forward adds, or of the network.
        kind: ``basic``, ``bottleneck``, ``inverted residual``, ``feed-forward``, ``attention`` or ``other``; ``plain`` for what
            :mod:`chansurg.surgery.survey.plain` finds.
        entry: the node whose output both sides start from.
        exit: the addition, or a layer of a recipe that stands for one; of a plain block the last node.
        branch: nodes of the branch, in order, without entry and exit; of a plain block all its nodes.
        shortcut: nodes of the shortcut, likewise; empty for an identity.
        shape: ``[C, H, W]`` of what the addition computes, or the token shape.
    """

    path: str
    kind: str
    entry: fx.Node
    exit: fx.Node
    branch: tuple[fx.Node, ...]
    shortcut: tuple[fx.Node, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A run of blocks with one output width and resolution.

    Args:
        shape: ``[C, H, W]`` of what they put out, or the token shape.
        blocks: the residual blocks, or the plain ones.
        opening: nodes of the layers of a first block without an addition, in order; empty where the first of ``blocks`` is the first.
    """

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    opening: tuple[fx.Node, ...] = ()

    @property
    def depth(self) -> int:
        """How many blocks it has, the first one included."""
        return len(self.blocks) + bool(self.opening)

    @property
    def numbered(self) -> list[tuple[int, Block]]:
        """The blocks with their numbers in the stage, from 1; an opening is block 1."""
        return list(enumerate(self.blocks, 1 + bool(self.opening)))


def find_blocks(nodes: list[fx.Node]) -> list[Block]:
    """The residual blocks of a region's graph that lie in no other block, in order.

    What holds convolutional blocks itself is none: a connection that skips whole stages, in a network for segmentation, say.
    """
    dominators = _dominators(nodes)
    order = {node: index for index, node in enumerate(nodes)}
    blocks = [block for node in nodes if _closes_a_block(node) and (block := _block(node, dominators, order)) is not None]
    exits = {block.exit for block in blocks if _is_convolutional(block)}
    blocks = [block for block in blocks if exits.isdisjoint(block.branch)]
    inner = {node for block in blocks for node in block.branch}
    return [block for block in blocks if block.exit not in inner]


def _is_convolutional(block: Block) -> bool:
    """Whether maps go into it and come out as large, past an identity and through a spatial convolution."""
    spatial = any(_kind_of_layer(node) != "pointwise" for node in _main_layers(block.branch))
    return spatial and not _main_layers(block.shortcut) and shape_of(block.entry) == shape_of(block.exit)


def find_stages(nodes: list[fx.Node], blocks: list[Block]) -> list[Stage]:
    """Group consecutive blocks by the shape they put out.

    Args:
        nodes: of the region's graph.
        blocks: its residual blocks, in order.
    """
    order = {node: index for index, node in enumerate(nodes)}
    stages: list[Stage] = []
    before: fx.Node | None = None
    for block in blocks:
        if stages and stages[-1].shape == block.shape:
            stages[-1] = Stage(block.shape, (*stages[-1].blocks, block), stages[-1].opening)
        else:
            stages.append(Stage(block.shape, (block,), _opening(block, before, order)))
        before = block.exit
    return stages


def _opening(block: Block, before: fx.Node | None, order: dict[fx.Node, int]) -> tuple[fx.Node, ...]:
    """The layers right ahead of a stage's first residual block that are of the kinds of its branch; empty where they are not.

    ``before`` is where the stage before ends. Layers that nothing but the network's input feeds are the stem, and no block.
    """
    shape = shape_of(block.entry)
    if shape is None or shape[1:] != block.shape or _main_layers(block.shortcut):
        return ()
    kinds = [_kind_of_layer(node) for node in _main_layers(block.branch)]
    ahead = _main_layers(_leading_to(block.entry, before, order))
    opening = tuple(ahead[-len(kinds) :])
    if not kinds or [_kind_of_layer(node) for node in opening] != kinds:
        return ()
    if (before is None and len(ahead) == len(kinds)) or shape_of(opening[-1]) != shape:
        return ()
    return opening


def _leading_to(last: fx.Node, first: fx.Node | None, order: dict[fx.Node, int]) -> list[fx.Node]:
    """The nodes behind ``first`` that ``last`` is computed from, and ``last`` itself, in order."""
    seen: set[fx.Node] = set()
    queue = [last]
    while queue:
        node = queue.pop()
        if node not in seen and (first is None or order[node] > order[first]):
            seen.add(node)
            queue.extend(tensor_inputs(node))
    return sorted(seen, key=order.__getitem__)


def _main_layers(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Convolutions and linear layers; not those on pooled vectors, as in squeeze and excitation."""
    return [node for node in nodes if (conv_of(node) is not None or linear_of(node) is not None) and not is_pooled(node)]


def _kind_of_layer(node: fx.Node) -> str:
    conv = conv_of(node)
    if conv is None or is_pointwise(conv):
        return "pointwise"
    return "depthwise" if is_depthwise(conv) else "spatial"


def _dominators(nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Immediate dominators in the graph of values that depend on the input; nodes are in topological order."""
    depth: dict[fx.Node, int] = {}
    immediate: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op == "placeholder":
            depth[node], immediate[node] = 0, node
            continue
        sources = [source for source in node.all_input_nodes if source in depth]
        if not sources:
            continue
        common = sources[0]
        for source in sources[1:]:
            while common is not source:
                if depth[common] == 0 and depth[source] == 0:
                    break
                if depth[common] >= depth[source]:
                    common = immediate[common]
                else:
                    source = immediate[source]
        immediate[node], depth[node] = common, depth[common] + 1
    return immediate


def _block(exit_node: fx.Node, dominators: dict[fx.Node, fx.Node], order: dict[fx.Node, int]) -> Block | None:
    entry = dominators.get(exit_node)
    shape = shape_of(exit_node)
    if entry is None or shape is None:
        return None
    operands = tensor_inputs(exit_node)
    if not is_addition(exit_node):
        operands = operands[:2]  # what else a recipe's layer is given belongs to the branch
    sides = [_between(entry, operand, order) for operand in operands]
    if len(sides) != 2 or set(sides[0]) & set(sides[1]):
        return None
    shortcut, branch = sorted(sides, key=lambda side: (_layer_count(side), len(side)))
    if not _layer_count(branch):
        return None
    address = exit_node.meta.get("address")
    return Block(address.owner if address else "", _kind(branch), entry, exit_node, tuple(branch), tuple(shortcut), shape[1:])


def _closes_a_block(node: fx.Node) -> bool:
    module = module_of(node)
    return is_addition(node) or (isinstance(module, RecipeLayer) and module.adds)


def _between(entry: fx.Node, last: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Every node on a path from ``entry`` (left out) to ``last``."""
    if last is entry:
        return []
    seen = {last}
    queue = [last]
    while queue:
        for source in tensor_inputs(queue.pop()):
            if source is not entry and source not in seen and order[source] > order[entry]:
                seen.add(source)
                queue.append(source)
    return sorted(seen, key=order.__getitem__)


def _layer_count(nodes: list[fx.Node]) -> int:
    return sum(1 for node in nodes if conv_of(node) is not None or linear_of(node) is not None or _is_attention(node))


def _is_attention(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.MultiheadAttention) or "attention" in str(getattr(node.target, "__name__", ""))


def _kind(branch: list[fx.Node]) -> str:
    if any(_is_attention(node) or "softmax" in path_of(node).lower() for node in branch):
        return "attention"
    convs = [conv for node in branch if (conv := conv_of(node)) is not None and not is_pooled(node)]
    linears = sum(1 for node in branch if linear_of(node) is not None)
    spatial = [conv for conv in convs if not is_pointwise(conv)]
    if any(is_depthwise(conv) for conv in spatial):
        return "inverted residual" if is_pointwise(convs[-1]) and not linears else "feed-forward"
    if not spatial:
        return "feed-forward" if len(convs) + linears >= 2 else "other"
    if len(convs) >= 3 and is_pointwise(convs[0]) and is_pointwise(convs[-1]):
        return "bottleneck"
    return "basic" if all(not is_pointwise(conv) for conv in convs) else "other"
