"""Channel slots: what an element of a tensor belongs to, and what must go together with what.

Every tensor of a traced network is described by two integer tensors of its own shape, for one image: which *slot* each element belongs to,
and the formula under which the element is exactly zero. A slot is a channel of the layer that made it. To remove a slot is to remove every
element that carries its number, from every tensor; slots that can only go together are united into one class. Both tensors are views
without memory of their own along most dimensions, so that a map of any size costs what its channels cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chansurg.surgery.slicing.formulas import FALSE, Formulas, Ints


@dataclass(frozen=True)
class Slots:
    """A tensor's description.

    Args:
        labels: int64, of the tensor's shape: each element's slot.
        zero: int64, likewise: the formula under which it is exactly zero.
        depth: convolutions and linear layers on the longest way there; tells a residual branch from its shortcut.
    """

    labels: Tensor
    zero: Tensor
    depth: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, for one image."""
        return tuple(self.labels.shape)


@dataclass(frozen=True)
class Channels:
    """A tensor seen as channels: their slots and formulas, ``[C]`` each, and the dimension they lie along."""

    labels: Ints
    zero: Ints
    dim: int


class SlotTable:
    """All slots of one network: their classes, and why some cannot go."""

    def __init__(self) -> None:
        self.formulas = Formulas()
        self.reasons: dict[int, str] = {}
        """Slots that must stay, each with the first reason found."""
        self._parent = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Ints:
        """New slots."""
        first = len(self._parent)
        made = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, made])
        return made

    def roots(self, labels: Ints) -> Ints:
        """One slot for each class, the same for all its members."""
        result: Ints = self._settled()[labels]
        return result

    def copy_of_parents(self) -> Ints:
        """Every slot's class, as it is now."""
        return self._settled().copy()

    def _settled(self) -> Ints:
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return self._parent
            self._parent = above

    def unite(self, a: Ints, b: Ints) -> None:
        """Element by element, the slots of ``a`` and ``b`` go together; arrays of one shape."""
        self._parent = united(self._settled(), a, b)

    def unite_tensors(self, a: Tensor, b: Tensor) -> None:
        """The same for tensors of slots."""
        first, second = together(a, b)
        self.unite(first.numpy(), second.numpy())

    def block(self, labels: Ints | Tensor, reason: str) -> None:
        """These slots must stay."""
        found = np.unique(packed(labels).numpy() if isinstance(labels, Tensor) else labels)
        for slot in found.tolist():
            self.reasons.setdefault(slot, reason)

    def varies(self, slots: Slots, dim: int) -> bool:
        """Whether elements that differ only in their place along ``dim`` are in different classes."""
        if slots.shape[dim] <= 1 or slots.labels.stride(dim) == 0:
            return False
        roots = torch.from_numpy(self.roots(packed(slots.labels, keep=dim).numpy()))
        return bool((roots != roots.narrow(dim, 0, 1)).any())

    def varying(self, slots: Slots) -> list[int]:
        """The dimensions along which classes differ."""
        return [dim for dim in range(len(slots.shape)) if self.varies(slots, dim)]

    def channels(self, slots: Slots, dim: int) -> Channels | None:
        """The tensor as channels along ``dim``; ``None`` where a channel's elements are in different classes."""
        dim %= len(slots.shape)
        labels, zero = together(slots.labels, slots.zero, keep=dim)
        rows = labels.movedim(dim, 0).reshape(slots.shape[dim], -1)
        if rows.shape[1] > 1:
            roots = self.roots(rows.numpy())
            if (roots != roots[:, :1]).any():
                return None
        formulas = zero.movedim(dim, 0).reshape(slots.shape[dim], -1).numpy()
        if (formulas == formulas[:, :1]).all():
            joined = formulas[:, 0]
        else:
            joined = np.array([self.formulas.all_of(row) for row in formulas], dtype=np.int64)
        return Channels(rows[:, 0].numpy().copy(), joined.copy(), dim)


def united(parents: Ints, a: Ints, b: Ints) -> Ints:
    """Classes after the slots of ``a`` and ``b`` went together, element by element; ``parents`` gives every slot its class's lowest."""
    a, b = a.reshape(-1), b.reshape(-1)
    parents = parents.copy()
    while True:
        low, high = np.minimum(parents[a], parents[b]), np.maximum(parents[a], parents[b])
        if np.array_equal(low, high):
            return parents
        np.minimum.at(parents, high, low)
        while not np.array_equal(above := parents[parents], parents):
            parents = above


def spread(values: Ints, dim: int, shape: tuple[int, ...]) -> Tensor:
    """``[C]`` along ``dim`` of a tensor of ``shape``, without memory for the other dimensions."""
    dim %= len(shape)
    view = [1] * len(shape)
    view[dim] = len(values)
    return torch.from_numpy(np.ascontiguousarray(values)).view(view).expand(shape)


def described(labels: Ints, zero: Ints | None, dim: int, shape: tuple[int, ...], depth: int) -> Slots:
    """A tensor of ``shape`` with channels along ``dim``; without formulas it is never known to be zero."""
    zeros = np.full(len(labels), FALSE, dtype=np.int64) if zero is None else zero
    return Slots(spread(labels, dim, shape), spread(zeros, dim, shape), depth)


def packed(tensor: Tensor, keep: int | None = None) -> Tensor:
    """The tensor with one place for each dimension along which it only repeats itself; ``keep`` stays whole."""
    return together(tensor, keep=keep)[0]


def together(*tensors: Tensor, keep: int | None = None) -> list[Tensor]:
    """Tensors of one shape with one place for each dimension along which all of them only repeat themselves."""
    for dim in range(tensors[0].ndim):
        if dim != keep and tensors[0].shape[dim] > 1 and all(tensor.stride(dim) == 0 for tensor in tensors):
            tensors = tuple(tensor.narrow(dim, 0, 1) for tensor in tensors)
    return [tensor.contiguous() for tensor in tensors]
