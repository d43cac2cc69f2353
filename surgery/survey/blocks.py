"""Residual blocks and stages, found in the graph and not by names.

An addition of two tensors of one shape closes a block; the node through which everything must pass to reach both of them (their nearest
common dominator) opens it. The side with fewer layers is the shortcut. Consecutive blocks with one output width and resolution make a
stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

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
        kind: ``basic``, ``bottleneck``, ``inverted residual``, ``feed-forward``, ``attention`` or ``other``.
        entry: the node whose output both sides start from.
        exit: the addition.
        branch: nodes of the branch, in order, without entry and exit.
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
    """A run of blocks with one output width and resolution."""

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


def find_blocks(nodes: list[fx.Node]) -> list[Block]:
    """The residual blocks of a region's graph that lie in no other block, in order."""
    dominators = _dominators(nodes)
    order = {node: index for index, node in enumerate(nodes)}
    blocks = [block for node in nodes if is_addition(node) and (block := _block(node, dominators, order)) is not None]
    inner = {node for block in blocks for node in block.branch}
    return [block for block in blocks if block.exit not in inner]


def find_stages(blocks: list[Block]) -> list[Stage]:
    """Group consecutive blocks by the shape they put out."""
    stages: list[Stage] = []
    for block in blocks:
        if stages and stages[-1].shape == block.shape:
            stages[-1] = Stage(block.shape, (*stages[-1].blocks, block))
        else:
            stages.append(Stage(block.shape, (block,)))
    return stages


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
    sides = [_between(entry, operand, order) for operand in tensor_inputs(exit_node)]
    if len(sides) != 2 or set(sides[0]) & set(sides[1]):
        return None
    shortcut, branch = sorted(sides, key=lambda side: (_layer_count(side), len(side)))
    if not _layer_count(branch):
        return None
    address = exit_node.meta.get("address")
    return Block(address.owner if address else "", _kind(branch), entry, exit_node, tuple(branch), tuple(shortcut), shape[1:])


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
