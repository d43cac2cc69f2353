"""Walking along chains of layers: what a convolution is followed by, and what feeds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey.kinds import (
    conv_of,
    follow,
    function_name,
    is_activation,
    is_addition,
    is_elementwise,
    is_layout_change,
    is_neutral,
    is_norm,
    is_pointwise,
    is_pooled,
    is_pooling,
    linear_of,
    module_of,
    shape_of,
    tensor_inputs,
)

_CHANNEL_BY_CHANNEL = frozenset(("addcmul", "getitem", "lerp", "masked_fill", "normalize", "pad", "roll", "where"))
_SPLITTING = frozenset(("split", "chunk", "tensor_split", "getitem"))


@dataclass(frozen=True)
class Tail:
    """What follows a layer at once: its norm and its activation, where it has them, and the last node of the three."""

    norm: fx.Node | None
    activation: fx.Node | None
    last: fx.Node

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Norm and activation, as far as there are any."""
        return tuple(node for node in (self.norm, self.activation) if node is not None)


def tail_of(layer: fx.Node) -> Tail:
    """The norm and activation that only ``layer`` feeds, in either order; identities between them are passed over.

    Each keeps the shape of what it is given.
    """
    norm: fx.Node | None = None
    activation: fx.Node | None = None
    last = reached = layer
    while len(reached.users) == 1:
        before, reached = reached, next(iter(reached.users))
        if shape_of(reached) != shape_of(before):
            break
        if norm is None and is_norm(reached):
            norm = last = reached
        elif activation is None and is_activation(reached):
            activation = last = reached
        elif not is_neutral(reached):
            break
    return Tail(norm, activation, last)


def stems(nodes: Iterable[fx.Node], image_channels: int, *, whole: bool) -> set[fx.Node]:
    """The convolutions that no other one feeds, through whatever lies between.

    Args:
        nodes: of a region's graph, in order.
        image_channels: channels of the network's input.
        whole: whether the region is the network as a whole. Where it is not, the region's first convolutions may have others ahead of them,
            and only those with as many input channels as an image are stems.
    """
    found: set[fx.Node] = set()
    reached: set[fx.Node] = set()
    for node in nodes:
        conv = conv_of(node)
        if any(source in reached or conv_of(source) is not None for source in tensor_inputs(node)):
            reached.add(node)
        elif conv is not None and (whole or conv.in_channels == image_channels):
            found.add(node)
    return found


def feeds_spatial_conv(last: fx.Node) -> bool:
    """Whether a spatial convolution, or a layer that stands in for one, takes ``last``'s output at once.

    Identities, padding and splits into parts may lie between.
    """
    return any(is_spatial(node) for node in follow(last, lambda node: is_neutral(node) or is_pooling_free_pad(node) or _splits(node)))


def feeds_addition(last: fx.Node) -> bool:
    """Whether ``last``'s output is added to another tensor at once; identities, pooling and resampling may lie between."""
    return any(is_addition(node) for node in follow(last, lambda node: is_neutral(node) or is_pooling(node)))


def is_pooling_free_pad(node: fx.Node) -> bool:
    """Padding, and nothing else of what :func:`is_pooling` covers."""
    module = module_of(node)
    name = type(module).__name__.lower() if module is not None else function_name(node)
    return is_pooling(node) and "pad" in name


def _splits(node: fx.Node) -> bool:
    return function_name(node) in _SPLITTING


def is_spatial(node: fx.Node) -> bool:
    """Whether the node calls a convolution that looks at neighbouring pixels, or a layer that stands in for one."""
    conv, module = conv_of(node), module_of(node)
    return (conv is not None and not is_pointwise(conv)) or (isinstance(module, RecipeLayer) and module.is_spatial)


def feeding_layer(layer: fx.Node, *, limit: int = 24) -> tuple[fx.Node | None, list[fx.Node]]:
    """The convolution or linear layer that feeds ``layer`` through operations that keep the number of channels.

    Norms, activations, identities, products with a gate (squeeze and excitation), response norms and changes of layout are walked through,
    always along the input that has the full size.

    Returns:
        The layer, or ``None`` where there is none within ``limit`` steps, and the nodes between, nearest to ``layer`` first.
    """
    between: list[fx.Node] = []
    node = _main_input(layer)
    while node is not None and len(between) < limit:
        if conv_of(node) is not None or linear_of(node) is not None:
            return node, between
        if node.op == "placeholder" or (is_addition(node) and not _joins_one_source(node)):
            return None, between
        if not (is_norm(node) or is_elementwise(node) or is_layout_change(node) or _keeps_size(node)):
            return None, between
        between.append(node)
        node = _main_input(node)
    return None, between


def _main_input(node: fx.Node) -> fx.Node | None:
    inputs = tensor_inputs(node)
    if not inputs:
        return None
    return max(inputs, key=lambda source: (not is_pooled(source), _size(source)))  # the first of equals


def _size(node: fx.Node) -> int:
    shape, total = shape_of(node), 1
    for length in shape or (0,):
        total *= length
    return total


def _keeps_size(node: fx.Node) -> bool:
    """A function, known not to mix channels, whose output is shaped as its main input."""
    source = _main_input(node)
    known = function_name(node) in _CHANNEL_BY_CHANNEL
    return known and source is not None and shape_of(node) is not None and shape_of(source) == shape_of(node)


def _joins_one_source(node: fx.Node) -> bool:
    """An addition inside a response norm: one operand is computed from the other."""
    operands = tensor_inputs(node)
    if len(operands) < 2:
        return True  # a parameter, such as a position embedding, is added
    first, second = operands[:2]
    return first in second.all_input_nodes or second in first.all_input_nodes
