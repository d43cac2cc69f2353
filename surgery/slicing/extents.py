"""Sizes that remember which tensor they were read from, so that a reshape by them can be told from a reshape by a constant."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partialmethod
from typing import Any

from chansurg.surgery.slicing.slots import Slots, SlotTable


class Extent(int):
    """A size that shrinks when channels of a tensor are removed: ``sources`` are the tensors and dimensions it was computed from."""

    sources: tuple[tuple[Slots, int], ...]

    def __new__(cls, value: int, sources: tuple[tuple[Slots, int], ...]) -> Extent:
        """A size read from a tensor, or computed from such sizes."""
        made = super().__new__(cls, value)
        made.sources = sources
        return made

    def _computed(self, other: Any, function: Callable[[Any, Any], Any]) -> Any:
        value = function(int(self), int(other) if isinstance(other, Extent) else other)
        sources = (*self.sources, *(other.sources if isinstance(other, Extent) else ()))
        return Extent(value, sources) if type(value) is int else value

    def _reflected(self, other: Any, function: Callable[[Any, Any], Any]) -> Any:
        value = function(other, int(self))
        return Extent(value, self.sources) if type(value) is int else value

    def __hash__(self) -> int:
        return int.__hash__(self)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Extent, f"__{_name}__", partialmethod(Extent._computed, function=getattr(operator, _name)))
    setattr(Extent, f"__r{_name}__", partialmethod(Extent._reflected, function=getattr(operator, _name)))


def counted(table: SlotTable, values: Iterable[Any], where: str) -> None:
    """See that tensors whose sizes enter the computation as numbers keep them."""
    for value in values:
        for slots, dim in value.sources if isinstance(value, Extent) else ():
            if table.varies(slots, dim):
                table.block(slots.labels, f"its number of channels enters the computation at {where}")


def extents(slots: Slots) -> tuple[Extent, ...]:
    """A tensor's sizes."""
    return tuple(Extent(size, ((slots, dim),)) for dim, size in enumerate(slots.shape))


def plain(value: Any) -> Any:
    """The same value with ordinary numbers for sizes, in nested containers."""
    if isinstance(value, Extent):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if isinstance(value, list) else tuple(plain(item) for item in value)
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value
