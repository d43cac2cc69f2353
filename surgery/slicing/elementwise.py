"""Sums, products and the like: elements that meet belong together, and zero follows from zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from chansurg.surgery.slicing.slots import Slots, SlotTable, together
from chansurg.surgery.survey.kinds import function_name, path_of

_SUMS = frozenset(("add", "iadd", "sub", "isub", "maximum", "minimum"))
_PRODUCTS = frozenset(("mul", "imul", "multiply"))
_QUOTIENTS = frozenset(("div", "truediv", "itruediv"))


def is_combination(node: fx.Node) -> bool:
    """Whether :func:`combined` knows what the node calls."""
    name = function_name(node)
    return name in _SUMS or name in _PRODUCTS or name in _QUOTIENTS or name == "pow"


def combined(table: SlotTable, node: fx.Node, a: Any, b: Any) -> Slots:
    """What comes out of a sum, product or quotient of two operands; each a described tensor, a constant one, or a number."""
    name = function_name(node)
    if isinstance(a, Slots) and isinstance(b, Slots):
        return _of_two(table, node, a, b)
    slots, constant = (a, b) if isinstance(a, Slots) else (b, a)
    keeps_zero = name in _PRODUCTS or (isinstance(a, Slots) and (name in _QUOTIENTS or (name == "pow" and _is_positive(constant))))
    if isinstance(constant, Tensor) and constant.numel() > 1:
        table.block(slots.labels, f"it is combined with a parameter or constant at {path_of(node)}")
        shape = _broadcast(slots.shape, constant.shape)
        if name == "pow":
            keeps_zero = False
        slots = Slots(slots.labels.expand(shape), slots.zero.expand(shape), slots.depth)
    return scaled(slots, keeps_zero=keeps_zero)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def scaled(slots: Slots, *, keeps_zero: bool) -> Slots:
    """The same channels with other values; zero where they were, or nowhere."""
    return slots if keeps_zero else Slots(slots.labels, torch.zeros((), dtype=torch.int64).expand(slots.shape), slots.depth)


def _of_two(table: SlotTable, node: fx.Node, a: Slots, b: Slots) -> Slots:
    name = function_name(node)
    shape = _broadcast(a.shape, b.shape)
    first, second = _spread_out(table, node, a, b, shape), _spread_out(table, node, b, a, shape)
    own = [side for side in (first, second) if side is not None]
    if len(own) == 2:
        table.unite_tensors(own[0].labels, own[1].labels)
    labels = (own[0] if own else Slots(a.labels.expand(shape), a.zero, 0)).labels
    x, y = together(a.zero.expand(shape), b.zero.expand(shape))
    if name in _PRODUCTS:
        zero = table.formulas.either(x.numpy(), y.numpy())
    elif name in _SUMS:
        zero = table.formulas.both(x.numpy(), y.numpy())
    else:
        zero = x.numpy() if name in _QUOTIENTS else x.numpy() * 0
    return Slots(labels, torch.from_numpy(zero).expand(shape), max(a.depth, b.depth))


def _spread_out(table: SlotTable, node: fx.Node, part: Slots, other: Slots, shape: tuple[int, ...]) -> Slots | None:
    """``part`` in the full shape; ``None`` where it is spread over channels of ``other`` and belongs to none of them."""
    labels = part.labels.expand(shape)
    full = Slots(other.labels.expand(shape), other.zero.expand(shape), 0)
    offset = len(shape) - len(part.shape)
    for dim, size in enumerate(shape):
        missing = dim < offset or part.shape[dim - offset] < size
        if missing and size > 1 and table.varies(full, dim):
            table.block(part.labels, f"it is spread over all channels at {path_of(node)}")
            return None
    return Slots(labels, part.zero, part.depth)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(tuple(a), tuple(b)))  # type: ignore[no-untyped-call]
