"""How a layer closes a block: the addition that its output goes into by itself, and what happens to it on the way there.

A ConvNeXt moves the channels to where its maps have them and multiplies each by a learned number, a layer scale, before it adds; so what
such a layer is to put out is the target with its dimensions moved back, and it counts as much as its channel's number says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from chansurg.surgery.calibration.segments import is_layer
from chansurg.surgery.survey.kinds import function_name, is_addition, is_neutral, permutation


@dataclass(frozen=True)
class Closing:
    """The way from a layer to an addition.

    Args:
        addition: where it ends.
        other: the addition's other side.
        way: the permutations and multiplications between, in order.
    """

    addition: fx.Node
    other: fx.Node
    way: tuple[fx.Node, ...] = ()

    def moved_back(self, x: Tensor) -> Tensor:
        """A tensor like the addition's, with its dimensions where the layer's output has them."""
        return _moved_back(x, self.way)

    def factor(self, value: Callable[[fx.Node], Tensor], width: int, dims: int, axis: int) -> Tensor | None:
        """What each channel of the layer's output is multiplied by on the way, ``[width]``, float64.

        ``None`` where that is not one number a channel.

        Args:
            value: what a node computes that depends on no input.
            width: channels.
            dims: dimensions of the output.
            axis: which of them is the channels'.
        """
        found = torch.ones(width, dtype=torch.float64)
        for number, node in enumerate(self.way):
            if permutation(node) is not None:
                continue
            scale = _scale_of(node)
            tensor = (value(scale) if isinstance(scale, fx.Node) else torch.tensor(scale)).double().cpu()
            tensor = _moved_back(tensor.reshape((1,) * (dims - tensor.ndim) + tensor.shape), self.way[:number])
            if tensor.numel() != 1 and not tensor.numel() == tensor.shape[axis] == width:
                return None
            found = found * tensor.flatten()
        return found


def closing(nodes: tuple[fx.Node, ...], tail: fx.Node) -> Closing | None:
    """How ``tail``'s output goes into an addition among ``nodes`` by itself.

    ``None`` where it does not, or where the other side waits for a layer that comes later.
    """
    order = {node: index for index, node in enumerate(nodes)}
    first = order[tail]
    way: list[fx.Node] = []
    while len(tail.users) == 1:
        reader = next(iter(tail.users))
        if is_addition(reader) and reader in order:
            other = next(source for source in reader.all_input_nodes if source is not tail)
            return None if _waits(other, order, first) else Closing(reader, other, tuple(way))
        moves = permutation(reader)
        if (moves is not None and moves[0] == 0) or _scale_of(reader) is not None:
            way.append(reader)
        elif not is_neutral(reader):
            return None
        tail = reader
    return None


def _scale_of(node: fx.Node) -> fx.Node | float | None:
    """What a multiplication by something that depends on no input multiplies by; ``None`` for any other node."""
    if function_name(node) not in ("mul", "imul") or len(node.args) != 2 or node.kwargs:
        return None
    fixed = [operand for operand in node.args if isinstance(operand, int | float) or (isinstance(operand, fx.Node) and _is_fixed(operand))]
    return fixed[0] if len(fixed) == 1 and any(isinstance(operand, fx.Node) and operand is not fixed[0] for operand in node.args) else None


def _is_fixed(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    return node.op in ("call_function", "call_method") and bool(node.all_input_nodes) and all(map(_is_fixed, node.all_input_nodes))


def _moved_back(x: Tensor, way: tuple[fx.Node, ...]) -> Tensor:
    for node in reversed(way):
        order = permutation(node)
        if order is not None:
            x = x.permute([order.index(dim) for dim in range(len(order))])
    return x


def _waits(node: fx.Node, order: dict[fx.Node, int], first: int) -> bool:
    """Whether a layer that comes later than ``first`` has a part in what the node computes."""
    if order.get(node, -1) <= first:
        return False
    return is_layer(node) or any(_waits(source, order, first) for source in node.all_input_nodes)
