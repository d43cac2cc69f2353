"""Operations that move elements and compute nothing: run on the descriptions themselves, once it is seen that they survive a removal.

After slots are removed, what is left of every tensor must be a whole array again, and the code that moves it, with whatever constants are
written in it, must still move it in the same way. So a size written as a constant keeps all of its places: slots that differ along it are
united, or stay where there is nothing to unite them with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from chansurg.surgery.slicing.extents import Extent, plain
from chansurg.surgery.slicing.nodes import PARTS, NoRule
from chansurg.surgery.slicing.slots import Slots, SlotTable
from chansurg.surgery.survey.kinds import function_name, module_of, path_of


def moved(table: SlotTable, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What comes out of a node that moves elements: :class:`Slots`, or a list of them."""
    source = args[0]
    module, name = module_of(node), function_name(node)
    if module is not None:
        if isinstance(module, nn.ChannelShuffle):
            parts = source.labels.chunk(module.groups, 1)
            for part in parts[1:]:
                table.unite_tensors(parts[0], part)
        result = _run(source, module)
        return (
            _unflattened(table, node, source, result, module.dim, module.unflattened_size) if isinstance(module, nn.Unflatten) else result
        )
    rest, named = plain(tuple(args[1:])), {key: plain(value) for key, value in kwargs.items()}
    if name == "getitem":
        return _indexed(table, node, source, args[1])
    if name in PARTS:
        return _parts(table, node, source, rest, named)
    if name in ("roll", "flip"):
        _keep_along(table, node, source, _dims(rest, named, "dims", 1 if name == "roll" else 0, len(source.shape)))
    if name == "expand_as":
        rest = (args[1].shape,)
    if name == "squeeze" and not rest and not named:
        raise NoRule(f"which dimensions go at {path_of(node)} depends on how many channels there are")
    if name == "expand":
        sizes = _sizes(args[1:], kwargs)
        ahead = len(sizes) - len(source.shape)
        _keep_along(table, node, source, [dim for dim, size in enumerate(sizes[ahead:]) if not isinstance(size, Extent) and size != -1])
    function = _function(node)
    if name == "view":
        return _reshaped(table, node, source, _run(source, torch.Tensor.reshape, *rest), _sizes(args[1:], kwargs))
    result = _run(source, function, *rest, **named)
    if name == "reshape":
        return _reshaped(table, node, source, result, _sizes(args[1:], kwargs))
    if name == "unflatten":
        given = {**dict(zip(("dim", "sizes"), args[1:], strict=False)), **kwargs}
        return _unflattened(table, node, source, result, given["dim"], given["sizes"])
    return result


def _run(source: Slots, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Slots:
    return Slots(function(source.labels, *args, **kwargs), function(source.zero, *args, **kwargs), source.depth)


def _function(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        method: Callable[..., Any] = getattr(torch.Tensor, str(node.target))
        return method
    assert callable(node.target)
    return node.target


def _sizes(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The sizes that a reshape was called with."""
    given = kwargs.get("shape", kwargs.get("size", args[0] if len(args) == 1 else list(args)))
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _unflattened(table: SlotTable, node: fx.Node, source: Slots, result: Slots, dim: int, sizes: Any) -> Slots:
    """See that cutting one dimension up into ``sizes`` survives."""
    dim %= len(source.shape)
    return _reshaped(table, node, source, result, [-1] * dim + list(sizes) + [-1] * (len(source.shape) - dim - 1))


def _reshaped(table: SlotTable, node: fx.Node, source: Slots, result: Slots, sizes: list[Any]) -> Slots:
    """See that a reshape by ``sizes`` survives."""
    fixed = [dim for dim in table.varying(result) if not isinstance(sizes[dim], Extent) and sizes[dim] != -1]
    free = [dim for dim in table.varying(result) if dim not in fixed]
    for dim in fixed if free else ():
        first = result.labels.narrow(dim, 0, 1).expand_as(result.labels)
        table.unite_tensors(first, result.labels)
    if fixed and not free:
        table.block(result.labels, f"it is reshaped to a fixed size at {path_of(node)}")
    if len(free) > 1:
        table.block(result.labels, f"it is cut up at {path_of(node)}")
    for dim in free:
        if isinstance(sizes[dim], Extent):
            _same_size(table, node, source, result, dim, sizes[dim])
    return result


def _same_size(table: SlotTable, node: fx.Node, source: Slots, result: Slots, dim: int, size: Extent) -> None:
    """A size read from another tensor must shrink as this one does."""
    for other, place in size.sources:
        if other is source:
            continue
        theirs, ours = table.channels(other, place), table.channels(result, dim)
        if theirs is not None and ours is not None and len(theirs.labels) == len(ours.labels):
            here, there = table.roots(ours.labels), table.roots(theirs.labels)
            if not np.array_equal(np.sort(here), np.sort(there)):  # the same channels in another order are as many
                table.unite(here, there)
        elif table.varies(other, place):
            table.block(result.labels, f"it takes the size of another tensor at {path_of(node)}")
            table.block(other.labels, f"another tensor takes its size at {path_of(node)}")


def _parts(table: SlotTable, node: fx.Node, source: Slots, rest: tuple[Any, ...], named: dict[str, Any]) -> list[Slots]:
    name = function_name(node)
    (dim,) = _dims(rest, named, "dim", 0 if name == "unbind" else 1, len(source.shape)) or (0,)
    function = _function(node)
    labels, zeros = function(source.labels, *rest, **named), function(source.zero, *rest, **named)
    parts = [Slots(label, zero, source.depth) for label, zero in zip(labels, zeros, strict=True)]
    if table.varies(source, dim):
        alike = len({part.shape for part in parts}) == 1
        if alike and name in ("chunk", "tensor_split"):
            for part in parts[1:]:
                table.unite_tensors(parts[0].labels, part.labels)
        else:
            table.block(source.labels, f"it is split at fixed places at {path_of(node)}")
    return parts


def _indexed(table: SlotTable, node: fx.Node, source: Slots, index: Any) -> Slots:
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Tensor) for item in items):
        raise NoRule(f"its channels are taken by a tensor of numbers at {path_of(node)}")
    taken = sum(1 for item in items if item is not None and item is not Ellipsis)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (len(source.shape) - taken)
    dim = 0
    for item in items:
        if item is None:
            continue
        if item != slice(None) and not (isinstance(item, slice) and _whole(item, source.shape[dim])):
            _keep_along(table, node, source, (dim,))
        dim += 1
    return _run(source, torch.Tensor.__getitem__, plain(index) if isinstance(index, (tuple, slice)) else int(index))


def _whole(item: slice, size: int) -> bool:
    """Whether a slice takes everything, whatever the size: it has no end written into it."""
    return (
        item.start in (None, 0) and item.step in (None, 1) and (item.stop is None or (isinstance(item.stop, Extent) and item.stop == size))
    )


def _keep_along(table: SlotTable, node: fx.Node, source: Slots, dims: Sequence[int]) -> None:
    if any(table.varies(source, dim) for dim in dims):
        table.block(source.labels, f"its channels are taken by number at {path_of(node)}")


def _dims(rest: tuple[Any, ...], named: dict[str, Any], name: str, position: int, ndim: int) -> tuple[int, ...]:
    given = named.get(name, rest[position] if len(rest) > position else ())
    return tuple(int(dim) % ndim for dim in (given if isinstance(given, (list, tuple)) else (given,)))


def joined(table: SlotTable, node: fx.Node, parts: Sequence[Any], dim: int, *, stacked: bool) -> Slots:
    """Concatenation, or stacking along a new dimension. Parts that are no :class:`Slots` are constants."""
    known = [part for part in parts if isinstance(part, Slots)]
    ndim = len(known[0].shape) + int(stacked)
    dim %= ndim
    for part in known:
        if len(known) < len(parts):
            table.block(part.labels, f"a constant is put beside it at {path_of(node)}")
    filled = [part if isinstance(part, Slots) else _constant(known[0], tuple(part.shape), dim) for part in parts]
    along = [part for part in filled if not stacked and table.varies(part, dim)]
    if not along:
        first = filled[0].labels if stacked else filled[0].labels.narrow(dim, 0, 1)
        for part in filled[1:]:
            other = part.labels if stacked else part.labels.narrow(dim, 0, 1)
            table.unite_tensors(first, other)
    for part in along:
        if len(table.varying(part)) > 1:
            table.block(part.labels, f"it is put beside another tensor at {path_of(node)}")
    join = torch.stack if stacked else torch.cat
    return Slots(join([p.labels for p in filled], dim), join([p.zero for p in filled], dim), max(p.depth for p in known))


def _constant(beside: Slots, shape: tuple[int, ...], dim: int) -> Slots:
    """A constant of ``shape`` beside a tensor whose slots must stay: it takes one of them, and is never known to be zero."""
    labels = beside.labels.reshape(-1)[:1].view((1,) * len(shape)).expand(shape)
    return Slots(labels, torch.zeros((), dtype=torch.int64).expand(shape), 0)
