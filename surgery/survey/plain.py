"""Stages of networks without residual blocks: runs of like convolutions that follow one another, as in a VGG.

A plain block is a spatial convolution with its norm and activation, or a depthwise one and the pointwise one behind it, as in a
MobileNetV1. Blocks of one kind, width and resolution that feed one another at once make a stage. A single block makes none.
"""

from __future__ import annotations

from torch import fx

from chansurg.surgery.survey.blocks import Block, Stage
from chansurg.surgery.survey.chains import tail_of
from chansurg.surgery.survey.kinds import conv_of, is_depthwise, is_neutral, is_pointwise, is_pooled, path_of, shape_of, tensor_inputs


def find_plain_stages(nodes: list[fx.Node]) -> list[Stage]:
    """The stages of a region's graph in which no residual block was found, in order."""
    runs: list[list[Block]] = []
    by_exit: dict[fx.Node, list[Block]] = {}
    taken: set[fx.Node] = set()
    for node in nodes:
        block = None if node in taken else _plain_block(node)
        if block is None:
            continue
        taken.update(block.branch)
        run = by_exit.get(_ahead(block.entry))
        if run is None or not _alike(run[-1], block):
            run = []
            runs.append(run)
        run.append(block)
        by_exit[block.exit] = run
    return [Stage(run[0].shape, tuple(run)) for run in runs if len(run) > 1]


def _plain_block(node: fx.Node) -> Block | None:
    conv = conv_of(node)
    if conv is None or is_pointwise(conv) or is_pooled(node) or not tensor_inputs(node):
        return None
    tail = tail_of(node)
    last = tail.last
    if is_depthwise(conv):
        behind = _behind(last)
        pointwise = conv_of(behind)
        if pointwise is None or not is_pointwise(pointwise):
            return None
        last = tail_of(behind).last
    found = shape_of(last)
    if found is None:
        return None
    entry = tensor_inputs(node)[0]
    return Block(path_of(node), "plain", entry, last, _chain(entry, last), (), found[1:])


def _chain(entry: fx.Node, last: fx.Node) -> tuple[fx.Node, ...]:
    """The chain from ``entry``, left out, to ``last``; identities between a convolution and its norm included."""
    chain = [last]
    while tensor_inputs(chain[-1])[0] is not entry:
        chain.append(tensor_inputs(chain[-1])[0])
    return tuple(chain[::-1])


def _behind(node: fx.Node) -> fx.Node:
    """What takes a node's output, identities passed over; the node itself where that is not one reader."""
    reader = node
    while len(reader.users) == 1:
        reader = next(iter(reader.users))
        if not is_neutral(reader):
            return reader
    return node


def _ahead(node: fx.Node) -> fx.Node:
    """What an identity passes on."""
    while is_neutral(node) and tensor_inputs(node):
        node = tensor_inputs(node)[0]
    return node


def _alike(a: Block, b: Block) -> bool:
    return a.shape == b.shape and _layers(a) == _layers(b)


def _layers(block: Block) -> list[tuple[tuple[int, ...], bool]]:
    convs = [conv for node in block.branch if (conv := conv_of(node)) is not None]
    return [(tuple(conv.kernel_size), is_depthwise(conv)) for conv in convs]
